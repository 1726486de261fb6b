"""Divide and conquer: updates that stretch the cohort in one direction are dropped."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from privbench.benchmarks.build import require
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.server import RoundContext
from privbench.defenses.aggregation import geometry
from privbench.defenses.aggregation.cohort import Cohort, CohortRule, Decision


def dnc_kept(
    x: Tensor, f: int, generator: torch.Generator, factor: float = 1.0, coordinates: int = 10_000, iterations: int = 1
) -> Tensor:
    """Whether each row is kept (Shejwalkar and Houmansadr 2021, algorithm 2), ``(n,)`` bool.

    Args:
        x: ``(n, d)``, finite.
        f: attackers.
        generator: draws coordinates.
        factor: c: ``c f`` rows are dropped in each iteration.
        coordinates: b, drawn in each iteration.
        iterations: rows have to be kept in all of them.
    """
    n, d = x.shape
    geometry.enough(n, f, math.floor(factor * f) + 1)
    kept = torch.ones(n, dtype=torch.bool)
    for _ in range(iterations):
        drawn = torch.randperm(d, generator=generator)[: min(d, coordinates)] if d > coordinates else torch.arange(d)
        part = x[:, drawn.to(x.device)].to(torch.float64)
        part = part - part.mean(dim=0)
        # The projections on the first right singular vector are the first left one's entries, times its value.
        values, vectors = torch.linalg.eigh(part @ part.T)
        scores = (vectors[:, -1] * values[-1].clamp(min=0).sqrt()).square().cpu()
        best = scores.argsort(stable=True)[: n - math.floor(factor * f)]
        kept &= torch.zeros(n, dtype=torch.bool).index_fill_(0, best, True)
    return kept


@dataclass(frozen=True)
class DnC(CohortRule):
    """The mean of the updates that don't stand out along the cohort's main direction (Shejwalkar and Houmansadr 2021).

    It is made for attackers that collude: of several directions it sees the main one alone.

    Args:
        f: attackers that it is told of, at least 0; fewer than half of the cohort.
        factor: c, how many updates are dropped for each attacker, > 0.
        coordinates: b, drawn in each iteration, at least 1.
        iterations: at least 1; an update has to be kept in all of them.
    """

    f: int = 1
    factor: float = 1.0
    coordinates: int = 10_000
    iterations: int = 1

    def __post_init__(self) -> None:
        require(self.f >= 0, "f", self.f, "at least 0")
        require(0 < self.factor < math.inf, "factor", self.factor, "must be positive")
        require(self.coordinates >= 1, "coordinates", self.coordinates, "at least 1")
        require(self.iterations >= 1, "iterations", self.iterations, "at least 1")

    @property
    def least(self) -> int:
        return max(2 * self.f, math.floor(self.factor * self.f) * self.iterations) + 1

    @property
    def asking(self) -> str:
        dropped = math.floor(self.factor * self.f)
        if dropped * self.iterations <= 2 * self.f:
            return "f"
        return "factor" if dropped > 2 * self.f else "iterations"

    def decide(self, cohort: Cohort, state: dict[str, Any], context: RoundContext) -> Decision:
        x, mixing = cohort.matrix, cohort.mixing
        rows = x if mixing is None else mixing.to(x) @ x
        draw = stream(context.seed, "dnc", context.round)
        kept = dnc_kept(rows, cohort.told(self.f), draw, self.factor, self.coordinates, self.iterations)
        # Several iterations may drop everybody between them: then nothing is changed.
        weights = kept.to(torch.float64) / kept.sum().clamp(min=1)
        return Decision(cohort.combined(weights), cohort.of_clients(weights) > 0)
