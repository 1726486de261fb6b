"""The coordinate-wise median."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from privbench.benchmarks.federation.server import RoundContext
from privbench.benchmarks.federation.update import Update, stack
from privbench.defenses.aggregation.rule import Diverged, empty


@dataclass(frozen=True)
class CoordinateMedian:
    """The median of each coordinate, unweighted (Yin et al. 2018); the mean of the middle two for an even cohort.

    Updates that aren't finite are left out, since one NaN would otherwise be the result. There is no bound on one
    client's influence that an epsilon could rest on.
    """

    bounded = False

    def combine(self, updates: Iterable[Update], state: dict[str, Any], context: RoundContext) -> Update:
        every = list(updates)
        cohort = [u for u in every if bool(torch.isfinite(u.vector).all())]
        if not every:
            return empty(context)
        if not cohort:
            raise Diverged(f"no client's update is finite in round {context.round}")
        matrix, records = stack(cohort)
        dropped = {"nonfinite_updates": torch.tensor(float(len(every) - len(cohort)))}
        return Update(median(matrix), context.layout, context.kind, int(records.sum()), dropped)


def median(matrix: torch.Tensor, chunk: int = 1 << 14) -> torch.Tensor:
    """Column medians of ``matrix`` (n, d), same dtype; columns are sorted in chunks that fit the cache."""
    n, d = matrix.shape
    out = torch.empty(d, dtype=matrix.dtype)
    for start in range(0, d, chunk):
        part = matrix[:, start : start + chunk].sort(dim=0).values
        out[start : start + chunk] = (part[(n - 1) // 2] + part[n // 2]) / 2
    return out
