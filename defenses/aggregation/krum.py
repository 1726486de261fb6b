"""Krum, Multi-Krum and Bulyan: rules that keep updates with near neighbours."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from privbench.benchmarks.build import require
from privbench.benchmarks.federation.server import RoundContext
from privbench.defenses.aggregation import geometry
from privbench.defenses.aggregation.cohort import Cohort, CohortRule, Decision
from privbench.defenses.aggregation.coordinates import order_statistics


def krum_scores(squared: Tensor, f: int, neighbours: int | None = None) -> Tensor:
    """Each row's sum of squared distances to its nearest others (Blanchard et al. 2017, section 4), ``(n,)``.

    Args:
        squared: squared distances, ``(n, n)``.
        f: attackers.
        neighbours: how many others count; ``None`` for the paper's n - f - 2, at least 1. Peers take n - f - 1.
    """
    n = len(squared)
    count = min(n - 1, max(1, n - f - 2) if neighbours is None else neighbours)
    others = squared.clone().fill_diagonal_(torch.inf)
    return others.sort(dim=1).values[:, :count].sum(dim=1)


def by_score(squared: Tensor, f: int, neighbours: int | None = None) -> Tensor:
    """Rows from the least score to the largest, ``(n,)`` int64; arguments as in :func:`krum_scores`.

    Where one neighbour counts, the nearest two have equal scores: first is who is nearer to all others, so that the
    order of clients decides nothing.
    """
    near = squared.sum(dim=1).argsort(stable=True)
    return near[krum_scores(squared, f, neighbours)[near].argsort(stable=True)]


def krum(x: Tensor, f: int, neighbours: int | None = None) -> Tensor:
    """The row of ``x`` (n, d), n > 2f, with the least score, ``(d,)``; arguments as in :func:`krum_scores`."""
    geometry.enough(len(x), f, 2 * f + 1)
    return x[int(by_score(geometry.squared_distances(x), f, neighbours)[0])].clone()


def multi_krum(x: Tensor, f: int, m: int | None = None, neighbours: int | None = None) -> Tensor:
    """The mean of the ``m`` rows of ``x`` (n, d), n > 2f, with the least scores, ``(d,)``; ``None``: n - f of them."""
    geometry.enough(len(x), f, 2 * f + 1)
    if m is not None and not 1 <= m <= len(x):
        raise ValueError(f"m={m}: 1 to {len(x)}, the number of updates")
    squared = geometry.squared_distances(x)
    return geometry.weighted(_best(squared, f, len(x) - f if m is None else m, neighbours), x)


def bulyan(x: Tensor, f: int) -> Tensor:
    """Bulyan of Krum (El Mhamdi et al. 2018, section 4), ``(d,)``.

    Of n - 2f rows, chosen one after another by Krum, the mean of the n - 4f values of each coordinate that lie
    nearest to their median.

    Args:
        x: ``(n, d)``, finite; n at least 4f + 3.
    """
    geometry.enough(len(x), f, 4 * f + 3)
    chosen = bulyan_selection(geometry.squared_distances(x), f)
    return around_median(x, len(x) - 4 * f, _picked(chosen, len(x)))


def bulyan_selection(squared: Tensor, f: int) -> Tensor:
    """Rows that Krum takes one after another, n - 2f of them, int64."""
    left = torch.arange(len(squared))
    chosen = []
    for _ in range(len(squared) - 2 * f):
        best = int(by_score(squared[left][:, left], f)[0])
        chosen.append(left[best])
        left = torch.cat([left[:best], left[best + 1 :]])
    return torch.stack(chosen)


def around_median(x: Tensor, count: int, mixing: Tensor) -> Tensor:
    """The mean of the ``count`` values of each coordinate of ``mixing @ x`` nearest to their median, ``(d,)``."""
    k = len(mixing)
    out = torch.empty(x.shape[1], dtype=x.dtype, device=x.device)
    for part, rows in order_statistics(x, range(k), mixing):
        ordered = torch.stack(rows)
        middle = ordered[(k - 1) // 2] / 2 + ordered[k // 2] / 2
        # In sorted order the nearest values are neighbours: the window whose farther end is nearest.
        ends = [torch.maximum(middle - ordered[i], ordered[i + count - 1] - middle) for i in range(k - count + 1)]
        first = torch.stack(ends).argmin(dim=0)
        window = first + torch.arange(count, device=x.device)[:, None]
        out[part] = ordered.gather(0, window).mean(dim=0)
    return out


def _best(squared: Tensor, f: int, m: int, neighbours: int | None = None) -> Tensor:
    """Weights ``(n,)`` of the mean of the ``m`` rows with the least scores."""
    best = by_score(squared, f, neighbours)[:m]
    return torch.zeros(len(squared), dtype=torch.float64, device=squared.device).index_fill_(0, best, 1 / m)


def _picked(rows: Tensor, n: int) -> Tensor:
    """The matrix ``(len(rows), n)`` that picks ``rows``."""
    return torch.nn.functional.one_hot(rows, n).to(torch.float64)


@dataclass(frozen=True)
class MultiKrum(CohortRule):
    """The mean of the updates with the nearest neighbours, unweighted (Blanchard et al. 2017, section 4 and 6.3).

    Args:
        f: attackers that it is told of, at least 0; its proof takes a cohort of 2f + 3.
        m: how many updates are averaged; ``None``: all but f. 1 is Krum.
    """

    f: int = 1
    m: int | None = None

    def __post_init__(self) -> None:
        require(self.f >= 0, "f", self.f, "at least 0")
        require(self.m is None or self.m >= 1, "m", self.m, "at least 1, or null for all but f")

    @property
    def least(self) -> int:
        return max(2 * self.f + 3, self.m or 1)

    @property
    def asking(self) -> str:
        return "m" if (self.m or 1) > 2 * self.f + 3 else "f"

    def decide(self, cohort: Cohort, state: dict[str, Any], context: RoundContext) -> Decision:
        squared, f = cohort.distances(), cohort.told(self.f)
        weights = _best(squared, f, min(len(squared), len(squared) - f if self.m is None else self.m))
        return Decision(cohort.combined(weights), cohort.of_clients(weights) > 0)


@dataclass(frozen=True)
class Bulyan(CohortRule):
    """Krum's choice one after another, then the values nearest to the median (El Mhamdi et al. 2018).

    Args:
        f: attackers that it is told of, at least 0; its proof takes a cohort of 4f + 3.
    """

    f: int = 1

    def __post_init__(self) -> None:
        require(self.f >= 0, "f", self.f, "at least 0")

    @property
    def least(self) -> int:
        return 4 * self.f + 3

    def decide(self, cohort: Cohort, state: dict[str, Any], context: RoundContext) -> Decision:
        squared, f = cohort.distances(), cohort.told(self.f)
        picked = _picked(bulyan_selection(squared, f), len(squared))
        mixing = picked if cohort.mixing is None else picked @ cohort.mixing
        # Who was chosen may have no coordinate in the result: there is no saying whom it kept.
        return Decision(around_median(cohort.matrix, len(squared) - 4 * f, mixing))
