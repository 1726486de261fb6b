"""How training records are divided among clients.

A partition covers each record exactly once, depends on its generator alone, and leaves no client empty.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from privbench.benchmarks.build import ConfigError, require


class Partition(Protocol):
    """A rule that divides records among clients."""

    def split(self, labels: Tensor, groups: Tensor | None, clients: int, generator: Generator) -> list[Tensor]:
        """Divide ``n`` records.

        Args:
            labels: ``(n,)`` int64.
            groups: what each record belongs to, ``(n,)`` int64, or ``None``.
            clients: how many clients.
            generator: source of all randomness.

        Returns:
            By client, the sorted indices of its records, int64.

        Raises:
            ConfigError: if it can't be done; the field is relative to the partition, or ``federation.clients``.
        """
        ...


@dataclass(frozen=True)
class IID:
    """Records are shuffled and dealt; sizes differ by one at most (McMahan et al. 2017, section 3)."""

    def split(self, labels: Tensor, groups: Tensor | None, clients: int, generator: Generator) -> list[Tensor]:
        return _deal(len(labels), _even(len(labels), clients), generator)


@dataclass(frozen=True)
class Dirichlet:
    """Each class is divided by proportions drawn from a Dirichlet distribution (Hsu et al. 2019; Li et al. 2022).

    Args:
        alpha: concentration; small is skewed, large approaches IID.
        min_records: clients below it are topped up with random records of the then largest client.
    """

    alpha: float
    min_records: int = 1

    def __post_init__(self) -> None:
        require(0 < self.alpha < math.inf, "alpha", self.alpha, "more than 0, and finite")
        require(self.min_records >= 1, "min_records", self.min_records, "at least 1")

    def split(self, labels: Tensor, groups: Tensor | None, clients: int, generator: Generator) -> list[Tensor]:
        _enough(len(labels), clients, self.min_records)
        draws = _numpy(generator)
        parts: list[list[int]] = [[] for _ in range(clients)]
        for label in labels.unique():
            own = _shuffled((labels == label).nonzero().flatten(), generator)
            sizes = _proportional(len(own), draws.dirichlet([self.alpha] * clients))
            for part, records in zip(parts, own.split(sizes), strict=True):
                part.extend(records.tolist())
        _top_up(parts, self.min_records, draws)
        return _sorted(parts)


@dataclass(frozen=True)
class Pathological:
    """Each client holds records of few classes (McMahan et al. 2017, section 3).

    Their shards of the sorted records straddle classes where sizes are unequal. Here clients choose classes in turn,
    first those that nobody holds, then those with the most records a holder; a class's holders share it evenly.

    Args:
        classes_per_client: how many classes a client holds at most.
    """

    classes_per_client: int = 2

    def __post_init__(self) -> None:
        require(self.classes_per_client >= 1, "classes_per_client", self.classes_per_client, "at least 1")

    def split(self, labels: Tensor, groups: Tensor | None, clients: int, generator: Generator) -> list[Tensor]:
        _enough(len(labels), clients, 1)
        present, counts = labels.unique(return_counts=True)
        each, total = self.classes_per_client, len(present)
        fits = each <= total <= each * clients
        require(
            fits,
            "classes_per_client",
            each,
            f"from {-(-total // clients)} to {total}: {clients} clients, {total} classes",
        )
        holders = self._choose(counts.tolist(), clients, generator)
        parts: list[list[int]] = [[] for _ in range(clients)]
        # From rare to common, a class's odd records go to those of its holders who have the fewest so far.
        for c in counts.argsort(stable=True).tolist():
            own = _shuffled((labels == present[c]).nonzero().flatten(), generator)
            poorest_first = sorted(holders[c], key=lambda client: len(parts[client]))
            for client, records in zip(poorest_first, own.split(_even(len(own), len(holders[c]))), strict=True):
                parts[client].extend(records.tolist())
        expected = f"fewer than {clients} clients, or more records: some client's classes ran out"
        require(all(parts), "classes_per_client", each, expected)
        return _sorted(parts)

    def _choose(self, counts: list[int], clients: int, generator: Generator) -> list[list[int]]:
        holders: list[list[int]] = [[] for _ in counts]
        for client in range(clients):
            tie = torch.randperm(len(counts), generator=generator).tolist()
            by_need = sorted(
                range(len(counts)), key=lambda c: (len(holders[c]) > 0, -counts[c] / (len(holders[c]) + 1), tie[c])
            )
            for c in by_need[: self.classes_per_client]:
                holders[c].append(client)
        return holders


@dataclass(frozen=True)
class Quantity:
    """Clients differ in how many records they hold, not in which.

    Args:
        sizes: exact sizes of the first clients; the others share the rest evenly.
        alpha: instead, sizes in proportions from a Dirichlet distribution with this concentration (Li et al. 2022).
        min_records: least size of a client that ``sizes`` doesn't name.
    """

    sizes: tuple[int, ...] = ()
    alpha: float | None = None
    min_records: int = 1

    def __post_init__(self) -> None:
        require(all(s >= 1 for s in self.sizes), "sizes", self.sizes, "at least 1 each")
        sound = self.alpha is None or 0 < self.alpha < math.inf
        require(sound, "alpha", self.alpha, "more than 0 and finite, or null")
        require(self.alpha is None or not self.sizes, "alpha", self.alpha, "null where sizes are given")
        require(self.min_records >= 1, "min_records", self.min_records, "at least 1")

    def split(self, labels: Tensor, groups: Tensor | None, clients: int, generator: Generator) -> list[Tensor]:
        n, named = len(labels), len(self.sizes)
        require(named <= clients, "sizes", self.sizes, f"at most {clients} sizes, one a client")
        rest, others = n - sum(self.sizes), clients - named
        if others == 0:
            require(rest == 0, "sizes", self.sizes, f"sizes that add up to the {n} records, or more clients than sizes")
        least = sum(self.sizes) + self.min_records * others
        require(
            least <= n,
            "sizes" if self.sizes else "min_records",
            self.sizes or self.min_records,
            f"{least} records at least, not {n}",
        )
        if self.alpha is None:
            return _deal(n, [*self.sizes, *_even(rest, others)], generator)
        draws = _numpy(generator)
        parts = [p.tolist() for p in _deal(n, _proportional(n, draws.dirichlet([self.alpha] * clients)), generator)]
        _top_up(parts, self.min_records, draws)
        return _sorted(parts)


@dataclass(frozen=True)
class Natural:
    """One client for each group that the data set comes with: a hospital, a patient."""

    def split(self, labels: Tensor, groups: Tensor | None, clients: int, generator: Generator) -> list[Tensor]:
        if groups is None:
            raise ConfigError("_target_", "Natural", "another partition: this data set names no groups")
        found = groups.unique()
        require(len(found) == clients, "federation.clients", clients, f"{len(found)}, one for each group")
        return [(groups == g).nonzero().flatten() for g in found]


@dataclass(frozen=True)
class ByGroup:
    """Whole groups (patients) are dealt at random, each to the client that has fewest records so far."""

    def split(self, labels: Tensor, groups: Tensor | None, clients: int, generator: Generator) -> list[Tensor]:
        if groups is None:
            raise ConfigError("_target_", "ByGroup", "another partition: this data set names no groups")
        found, counts = groups.unique(return_counts=True)
        require(clients <= len(found), "federation.clients", clients, f"at most {len(found)}, the number of groups")
        sizes, owner = [0] * clients, torch.empty(len(found), dtype=torch.int64)
        for place in torch.randperm(len(found), generator=generator).tolist():
            least = min(range(clients), key=sizes.__getitem__)
            owner[place] = least
            sizes[least] += int(counts[place])
        each = owner[torch.searchsorted(found, groups)]
        return [(each == client).nonzero().flatten() for client in range(clients)]


def _enough(records: int, clients: int, least: int) -> None:
    require(
        clients * least <= records,
        "min_records",
        least,
        f"at most {records // clients}: {records} records, {clients} clients",
    )


def _even(n: int, parts: int) -> list[int]:
    return [n // parts + (i < n % parts) for i in range(parts)]


def _proportional(n: int, shares: np.ndarray) -> list[int]:
    """``n`` cut at the cumulated ``shares``, which add up to 1."""
    cuts = [0, *(int(c * n) for c in np.cumsum(shares)[:-1]), n]
    return [max(b - a, 0) for a, b in pairwise(cuts)]


def _shuffled(records: Tensor, generator: Generator) -> Tensor:
    return records[torch.randperm(len(records), generator=generator)]


def _deal(n: int, sizes: list[int], generator: Generator) -> list[Tensor]:
    return [p.sort().values for p in torch.randperm(n, generator=generator).split(sizes)]


def _top_up(parts: list[list[int]], least: int, draws: np.random.Generator) -> None:
    for part in parts:
        while len(part) < least:
            richest = max(parts, key=len)
            part.append(richest.pop(int(draws.integers(len(richest)))))


def _sorted(parts: list[list[int]]) -> list[Tensor]:
    return [torch.tensor(sorted(p), dtype=torch.int64) for p in parts]


def _numpy(generator: Generator) -> np.random.Generator:
    """NumPy has a Dirichlet sampler that holds for a small alpha; PyTorch's takes no generator."""
    return np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
