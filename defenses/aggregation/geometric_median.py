"""The geometric median (RFA) and centered clipping: means whose members can't pull as far as they like."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from privbench.benchmarks.build import require
from privbench.benchmarks.federation.server import RoundContext
from privbench.defenses.aggregation import geometry
from privbench.defenses.aggregation.cohort import Cohort, CohortRule, Decision


def geometric_median(x: Tensor, weights: Tensor | None = None) -> Tensor:
    """The point with the least weighted sum of distances to the rows of ``x``, ``(d,)``.

    Args:
        x: ``(n, d)``, finite.
        weights: ``(n,)``, at least 0 and not all 0; ``None`` for equal ones.
    """
    given = torch.ones(len(x)) if weights is None else weights
    return geometry.weighted(geometric_median_weights(geometry.squared_distances(x), given), x)


def geometric_median_weights(
    squared: Tensor, weights: Tensor, smoothing: float = 1e-6, tolerance: float = 1e-10, most: int = 1000
) -> Tensor:
    """Weights ``(n,)`` of the rows whose combination is the geometric median, summing to one.

    Smoothed Weiszfeld iterations (Pillutla et al. 2022, algorithm 2) from the mean, until the weights stand still: all
    of them in the n by n squared distances.

    Args:
        squared: ``(n, n)``.
        weights: of the rows, ``(n,)``.
        smoothing: nu, of the median distance: nearer rows count as if they were so far.
        tolerance: largest change of a weight at which it ends.
        most: iterations at most.
    """
    given = weights.to(squared) / weights.sum()
    current = given
    apart = squared[~torch.eye(len(squared), dtype=torch.bool, device=squared.device)]
    floor = smoothing * math.sqrt(float(apart.median())) if len(apart) else 0.0
    # Where most rows are one point, that point is the median, and distances to it are rounding.
    floor = max(floor, 1e-9 * math.sqrt(float(squared.max())), torch.finfo(torch.float64).tiny)
    for _ in range(most):
        pull = given / geometry.to_point(squared, current).sqrt().clamp(min=floor)
        following = pull / pull.sum()
        if float((following - current).abs().max()) <= tolerance:
            return following
        current = following
    return current


def centered_clipping(x: Tensor, center: Tensor, radius: float, iterations: int = 1) -> Tensor:
    """``v <- v + mean of (x_i - v) min(1, radius / ||x_i - v||)`` (Karimireddy et al. 2021, algorithm 2), ``(d,)``.

    Args:
        x: ``(n, d)``, finite.
        center: v to begin with, ``(d,)``.
        radius: tau, > 0.
        iterations: L, at least 1.
    """
    weights = clipping_weights(geometry.squared_distances(x, center), radius, iterations)
    return geometry.weighted(weights[:-1], x) + weights[-1].to(x) * center


def clipping_weights(squared: Tensor, radius: float, iterations: int) -> Tensor:
    """Weights of the rows and of the center, the last of them, whose combination centered clipping comes to.

    Args:
        squared: squared distances among rows and center, ``(n + 1, n + 1)``.
        radius, iterations: as in :func:`centered_clipping`.
    """
    n = len(squared) - 1
    current = torch.zeros(n + 1, dtype=torch.float64, device=squared.device)
    current[-1] = 1
    for _ in range(iterations):
        distances = geometry.to_point(squared, current)[:-1].sqrt()
        factors = (radius / distances.clamp(min=torch.finfo(torch.float64).tiny)).clamp(max=1) / n
        current = current * (1 - factors.sum())
        current[:-1] += factors
    return current


@dataclass(frozen=True)
class GeometricMedian(CohortRule):
    """The geometric median, weighted by records or equally as the federation says (RFA, Pillutla et al. 2022)."""

    def decide(self, cohort: Cohort, state: dict[str, Any], context: RoundContext) -> Decision:
        records = cohort.records if context.weighting == "records" else torch.ones_like(cohort.records)
        # A mixture weighs as much as what is in it does on average.
        own = records if cohort.mixing is None else cohort.mixing.to(records) @ records
        return Decision(cohort.combined(geometric_median_weights(cohort.distances(), own)))


@dataclass(frozen=True)
class CenteredClipping(CohortRule):
    """Clipping around the last round's aggregate, unweighted (Karimireddy et al. 2021); the first is around zero.

    Args:
        radius: tau, > 0.
        iterations: L, at least 1.
    """

    radius: float = 1.0
    iterations: int = 1

    def __post_init__(self) -> None:
        require(0 < self.radius < math.inf, "radius", self.radius, "must be positive")
        require(self.iterations >= 1, "iterations", self.iterations, "at least 1")

    def decide(self, cohort: Cohort, state: dict[str, Any], context: RoundContext) -> Decision:
        center = state.get("center", torch.zeros(context.layout.size))
        squared, mixing = geometry.squared_distances(cohort.matrix, center), cohort.mixing
        if mixing is not None:
            squared = geometry.mixed_distances(squared, torch.block_diag(mixing, torch.ones(1, 1).to(mixing)))
        weights = clipping_weights(squared, self.radius, self.iterations)
        state["center"] = cohort.combined(weights[:-1]) + float(weights[-1]) * center
        return Decision(state["center"])
