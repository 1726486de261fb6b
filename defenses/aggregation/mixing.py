"""What is done to updates before a rule: they are mixed, so that clients who differ don't look like attackers."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from privbench.benchmarks.build import require
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.server import RoundContext
from privbench.defenses.aggregation import geometry


class Mixing(Protocol):
    """Makes of n updates k mixtures, as a matrix: the mixtures themselves need not be made."""

    @property
    def least(self) -> int:
        """The smallest cohort that it can mix, screened clients included."""
        ...

    def rows(self, clients: int) -> int:
        """How many mixtures there are of so many updates."""
        ...

    def matrix(self, x: Tensor, screened: int, context: RoundContext) -> Tensor:
        """The mixing matrix, ``(k, n)`` float64, each row at least 0 and summing to one.

        Args:
            x: the updates, ``(n, d)``.
            screened: how many were dropped before.
        """
        ...


@dataclass(frozen=True)
class NearestNeighbourMixing:
    """Each update becomes the mean of the n - f that are nearest to it, itself included (Allouah et al. 2023).

    Args:
        f: attackers that it is told of, at least 0; fewer than half of the cohort.
    """

    f: int = 1

    def __post_init__(self) -> None:
        require(self.f >= 0, "f", self.f, "at least 0")

    @property
    def least(self) -> int:
        return 2 * self.f + 1

    def rows(self, clients: int) -> int:
        return clients

    def matrix(self, x: Tensor, screened: int, context: RoundContext) -> Tensor:
        return nearest_neighbours(geometry.squared_distances(x), max(0, self.f - screened))


@dataclass(frozen=True)
class Bucketing:
    """Updates are put into buckets of ``size`` at random, and averaged there (Karimireddy et al. 2022, algorithm 1).

    Args:
        size: s, at least 1; the last bucket may hold fewer. An attacker spoils a bucket, of which there are fewer.
    """

    size: int = 2

    def __post_init__(self) -> None:
        require(self.size >= 1, "size", self.size, "at least 1")

    @property
    def least(self) -> int:
        return 1

    def rows(self, clients: int) -> int:
        return math.ceil(clients / self.size)

    def matrix(self, x: Tensor, screened: int, context: RoundContext) -> Tensor:
        return buckets(len(x), self.size, stream(context.seed, "buckets", context.round))


def nearest_neighbours(squared: Tensor, f: int) -> Tensor:
    """Nearest-neighbour mixing as a matrix, ``(n, n)`` float64.

    Args:
        squared: squared distances, ``(n, n)``.
        f: how many are left out of each mixture, fewer than n.
    """
    n = len(squared)
    geometry.enough(n, f, f + 1)
    # A row is its own nearest also among copies of it.
    nearest = squared.clone().fill_diagonal_(-1).argsort(dim=1, stable=True)[:, : n - f]
    return torch.zeros_like(squared).scatter_(1, nearest, 1 / (n - f))


def buckets(n: int, size: int, generator: torch.Generator) -> Tensor:
    """Means of buckets as a matrix, ``(ceil(n / size), n)`` float64."""
    parts = torch.randperm(n, generator=generator).split(size)
    made = torch.zeros(len(parts), n, dtype=torch.float64)
    for bucket, members in enumerate(parts):
        made[bucket, members] = 1 / len(members)
    return made
