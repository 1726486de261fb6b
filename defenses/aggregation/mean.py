"""Means: plain, and of clipped updates."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from privbench.benchmarks.build import require
from privbench.benchmarks.federation.server import RoundContext
from privbench.benchmarks.federation.update import Update
from privbench.defenses.aggregation.rule import Diverged, check_finite
from privbench.defenses.aggregation.sums import Sum


@dataclass(frozen=True)
class Mean:
    """The mean, weighted by records or equally as the federation says (FedAvg, McMahan et al. 2017)."""

    bounded = False

    def combine(self, updates: Iterable[Update], state: dict[str, Any], context: RoundContext) -> Update:
        total = Sum(context)
        for update in updates:
            check_finite(update, context)
            total.add(update)
        return self.of_sum(total)

    def of_sum(self, total: Sum) -> Update:
        return total.mean()


@dataclass(frozen=True)
class ClippedMean:
    """The mean of updates clipped to an L2 norm: ``u min(1, C / ||u||)`` (Sun et al. 2019; McMahan et al. 2018).

    The norm is that of the whole vector, buffers included. Under a privacy plan the clip is the plan's, the sum is
    divided by the expected cohort size whatever the realised one, and an update that isn't finite counts as zero
    without a word (a round in which no update is finite stops the simulation); otherwise it stops the run. Extras are
    averaged like vectors, but under a plan they are dropped: its budget doesn't cover them.

    Args:
        clip: bound C, > 0; ``None`` takes the privacy plan's.
    """

    clip: float | None = None
    bounded = True

    def __post_init__(self) -> None:
        require(self.clip is None or 0 < self.clip < math.inf, "clip", self.clip, "must be positive, or null")

    def combine(self, updates: Iterable[Update], state: dict[str, Any], context: RoundContext) -> Update:
        # With a clip of its own this is no part of a guarantee: a record-level plan's clip is another bound.
        plan, total = context.plan if self.clip is None else None, Sum(context)
        bound = plan.clip if plan else self.clip
        assert bound is not None  # Defense.bind refuses a rule without a bound
        clipped = count = kept = 0
        for update in updates:
            norm = float(torch.linalg.vector_norm(update.vector, dtype=torch.float64))
            count += 1
            if not math.isfinite(norm):
                if plan is None:
                    check_finite(update, context)
                continue
            kept += 1
            clipped += norm > bound
            total.add(update, scale=clip_factor(norm, bound))
        if count and not kept:
            raise Diverged(f"no client's update is finite in round {context.round}")
        mean = total.mean(normaliser=context.expected if plan else None)
        if plan:
            mean.extras.clear()
        elif count:
            # How many were clipped is an output of its own: under a plan it would need a budget of its own.
            mean.extras["clipped_share"] = torch.tensor(clipped / count)
        return mean


@dataclass(frozen=True)
class FixedDenominatorMean:
    """The sum over the expected cohort size, whatever the realised one (McMahan et al. 2018, their first estimator).

    For messages that their clients have clipped and noised (:class:`~privbench.defenses.local.ClientNoise`): their
    noise is far longer than C, so it clips nothing, and one client can move the sum as far as it likes. Extras are
    dropped, since no noise covers them.
    """

    bounded = False

    def combine(self, updates: Iterable[Update], state: dict[str, Any], context: RoundContext) -> Update:
        total = Sum(context)
        for update in updates:
            check_finite(update, context)
            total.add(update)
        return self.of_sum(total)

    def of_sum(self, total: Sum) -> Update:
        mean = total.mean(normaliser=total.context.expected)
        mean.extras.clear()
        return mean


def clip_factor(norm: float | Tensor, bound: float) -> float:
    """``min(1, C / norm)`` with the rounding of float32 kept on the safe side."""
    return min(1.0, bound / max(float(norm), 1e-12) * (1 - 1e-6))
