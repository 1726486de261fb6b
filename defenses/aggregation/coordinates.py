"""Rules that go coordinate by coordinate: median, trimmed mean."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privbench.benchmarks.build import require
from privbench.benchmarks.federation.server import RoundContext
from privbench.defenses.aggregation import geometry
from privbench.defenses.aggregation.cohort import Cohort, CohortRule, Decision

SMALL = 32
"""Rows up to which a sorting network over whole rows is faster than sorting columns."""


def median(x: Tensor, mixing: Tensor | None = None) -> Tensor:
    """The median of each column (Yin et al. 2018), ``(d,)``; the mean of the middle two of an even number of rows.

    Args:
        x: ``(n, d)``, finite.
        mixing: as in :func:`order_statistics`.
    """
    n = len(x) if mixing is None else len(mixing)
    out = torch.empty(x.shape[1], dtype=x.dtype, device=x.device)
    for part, middle in order_statistics(x, range((n - 1) // 2, n // 2 + 1), mixing):
        # Halved before they are added: the sum of two large numbers may not be finite.
        out[part] = middle[0] if n % 2 else middle[0] / 2 + middle[1] / 2
    return out


def trimmed_mean(x: Tensor, f: int, mixing: Tensor | None = None) -> Tensor:
    """The mean of each column without its ``f`` largest and ``f`` smallest values (Yin et al. 2018), ``(d,)``.

    Args:
        x: ``(n, d)``, finite; ``n > 2 f``.
        mixing: as in :func:`order_statistics`.

    Raises:
        ValueError: for fewer rows, or a negative ``f``.
    """
    n = len(x) if mixing is None else len(mixing)
    geometry.enough(n, f, 2 * f + 1)
    out = torch.empty(x.shape[1], dtype=x.dtype, device=x.device)
    for part, kept in order_statistics(x, range(f, n - f), mixing, ordered=False):
        total = kept[0]  # the generator's own, to be written on
        for row in kept[1:]:
            total += row
        out[part] = total / len(kept)
    return out


def order_statistics(
    x: Tensor, ranks: range, mixing: Tensor | None = None, ordered: bool = True
) -> Iterator[tuple[slice, list[Tensor]]]:
    """Some of the sorted values of each column, a few columns at a time.

    Args:
        x: ``(n, d)``, finite, any floating dtype and device.
        ranks: which, from 0 for the smallest.
        mixing: ``(k, n)``: sort the columns of ``mixing @ x``, which is never made as a whole; ``None``: of ``x``.
        ordered: ``False`` where it doesn't matter in which order the values at ``ranks`` come.

    Yields:
        Columns, and their values at ``ranks``, ``(columns,)`` each, ascending: good until the next are asked for.
    """
    n, width = len(x) if mixing is None else len(mixing), min(x.shape[1], geometry.CHUNK)
    work = torch.empty(n + 1, width, dtype=geometry.working(x[:0]).dtype)
    for part in geometry.chunks(x.shape[1]):
        rows = geometry.working(x[:, part])
        if mixing is not None:
            rows = mixing.to(rows) @ rows
        if rows.device.type != "cpu":
            yield part, list(rows.sort(dim=0).values[ranks.start : ranks.stop])
        elif n <= SMALL:
            yield part, _through_network(rows, ranks, work[:, : rows.shape[1]], ordered)
        else:
            columns = np.sort(np.ascontiguousarray(rows.numpy().T), axis=1)
            yield part, list(torch.from_numpy(np.ascontiguousarray(columns[:, ranks.start : ranks.stop].T)))


def _through_network(rows: Tensor, ranks: range, work: Tensor, ordered: bool) -> list[Tensor]:
    """Each comparator puts two rows in order as wholes, by vector instructions.

    Args:
        work: room for the rows and one more, which fits the cache; what was in it is lost.
    """
    work[:-1] = rows
    wires = list(work.numpy())
    spare = wires.pop()
    for low, high, lower, higher in _network(len(rows), ranks, ordered):
        if not higher:
            np.minimum(wires[low], wires[high], out=wires[low])
        elif not lower:
            np.maximum(wires[low], wires[high], out=wires[high])
        else:
            np.minimum(wires[low], wires[high], out=spare)
            np.maximum(wires[low], wires[high], out=wires[high])
            wires[low], spare = spare, wires[low]
    return [torch.from_numpy(wires[rank]) for rank in ranks]


@lru_cache(maxsize=64)
def _network(n: int, ranks: range, ordered: bool) -> list[tuple[int, int, bool, bool]]:
    """Batcher's odd-even merge sort (1968) on ``n`` wires, without what no wire of ``ranks`` depends on.

    Returns:
        Comparators in order: two wires, and whether the lower and the higher output are used.
    """
    comparators: list[tuple[int, int]] = []
    p = 1
    while p < n:
        k = p
        while k >= 1:
            for j in range(k % p, n - k, 2 * k):
                pairs = ((i + j, i + j + k) for i in range(min(k, n - j - k)))
                comparators += [(a, b) for a, b in pairs if a // (2 * p) == b // (2 * p)]
            k //= 2
        p *= 2
    needed, used, loose = set(ranks), [], set() if ordered else set(ranks)
    for a, b in reversed(comparators):
        if a in loose and b in loose:
            continue  # both go on to values whose order doesn't matter
        if a in needed or b in needed:
            loose -= {a, b}
            used.append((a, b, a in needed, b in needed))
            needed |= {a, b}
    return used[::-1]


@dataclass(frozen=True)
class CoordinateMedian(CohortRule):
    """The median of each coordinate, unweighted (Yin et al. 2018); the mean of the middle two for an even cohort."""

    def decide(self, cohort: Cohort, state: dict[str, Any], context: RoundContext) -> Decision:
        return Decision(median(cohort.matrix, cohort.mixing))


@dataclass(frozen=True)
class TrimmedMean(CohortRule):
    """The mean of each coordinate without the f largest and f smallest values, unweighted (Yin et al. 2018).

    Args:
        f: attackers that it is told of, at least 0; fewer than half of the cohort.
    """

    f: int = 1

    def __post_init__(self) -> None:
        require(self.f >= 0, "f", self.f, "at least 0")

    @property
    def least(self) -> int:
        return 2 * self.f + 1

    def decide(self, cohort: Cohort, state: dict[str, Any], context: RoundContext) -> Decision:
        return Decision(trimmed_mean(cohort.matrix, cohort.told(self.f), cohort.mixing))
