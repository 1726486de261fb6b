"""Means: plain, and of clipped updates."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from privbench.benchmarks.build import require
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.server import RoundContext
from privbench.benchmarks.federation.update import Update
from privbench.defenses.aggregation.rule import SumRule
from privbench.defenses.aggregation.screen import Screen
from privbench.defenses.aggregation.sums import Sum
from privbench.defenses.noise import gaussian

if TYPE_CHECKING:
    from privbench.defenses.accounting.plan import Facts


@dataclass(frozen=True)
class Mean:
    """The mean, weighted by records or equally as the federation says (FedAvg, McMahan et al. 2017).

    An update that holds NaN or infinity, or is absurdly long, is left out, and the record names its client.
    """

    bounded = False

    def check(self, facts: "Facts") -> None:
        pass

    def combine(self, updates: Iterable[Update], state: dict[str, Any], context: RoundContext) -> Update:
        return summed(updates, context, self)

    def of_sum(self, total: Sum) -> Update:
        return total.mean()


@dataclass(frozen=True)
class ClippedMean:
    """The mean of updates clipped to an L2 norm: ``u min(1, C / ||u||)`` (Sun et al. 2019; McMahan et al. 2018).

    The norm is that of the whole vector, buffers included. Under a privacy plan the clip is the plan's, the sum is
    divided by the expected cohort size whatever the realised one, and an update that isn't finite counts as zero
    without a word, all of them too; otherwise it is left out, and so is an absurdly long one, and the record names its
    client, and a round in which no update is finite stops the simulation. Extras are averaged like vectors, but under a
    plan they are dropped: its budget doesn't cover them.

    Args:
        clip: bound C, > 0; ``None`` takes the privacy plan's.
    """

    clip: float | None = None
    bounded = True

    def __post_init__(self) -> None:
        require(self.clip is None or 0 < self.clip < math.inf, "clip", self.clip, "must be positive, or null")

    def check(self, facts: "Facts") -> None:
        pass

    def combine(self, updates: Iterable[Update], state: dict[str, Any], context: RoundContext) -> Update:
        # With a clip of its own this is no part of a guarantee: a record-level plan's clip is another bound.
        plan = context.plan if self.clip is None else None
        bound = plan.clip if plan else self.clip
        assert bound is not None  # Defense.bind refuses a rule without a bound
        return self._clipped(updates, bound, context)[0]

    def _clipped(self, updates: Iterable[Update], bound: float, context: RoundContext) -> tuple[Update, int, int]:
        """The mean, how many updates are in it, and how many of them were clipped."""
        plan, total = context.plan if self.clip is None else None, Sum(context)
        clipped = kept = 0
        screen = Screen(context)
        for update, norm in screen.passed(updates):
            kept += 1
            clipped += norm > bound
            total.add(update, scale=clip_factor(norm, bound))
        mean = total.mean(normaliser=context.expected if plan else None)
        if plan:
            # Who was left out, and how many were clipped, are outputs of their own: a plan's budget has none for them.
            mean.extras.clear()
        elif screen.seen:
            mean.extras.update(screened=screen.names, clipped_share=torch.tensor(clipped / screen.seen))
        return mean, kept, clipped


@dataclass(frozen=True)
class AdaptiveClippedMean(ClippedMean):
    """A clip that follows a quantile of the norms (Andrew et al. 2021, algorithm 1).

    Each round ``C <- C exp(-rate (b - quantile))``, where b is the share of updates below the clip, from a count with
    noise of its own (the plan's ``count_noise``): the plan gives the sum so much more noise that both together cost
    what its multiplier says. It begins with the plan's clip, and the clip of each round is released.

    Args:
        quantile: gamma, of the norms of updates, in [0, 1].
        rate: eta, the rate of the geometric updates, in (0, 10].
    """

    quantile: float = 0.5
    rate: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.clip is None, "clip", self.clip, "null: it is adapted, and begins with the privacy plan's")
        require(0 <= self.quantile <= 1, "quantile", self.quantile, "in [0, 1]")
        require(
            0 < self.rate <= 10, "rate", self.rate, "positive, and at most 10: the clip then changes by e^10 a round"
        )

    def combine(self, updates: Iterable[Update], state: dict[str, Any], context: RoundContext) -> Update:
        plan = context.plan
        assert plan is not None  # Defense refuses this rule without a plan
        bound = state.get("clip", plan.clip)
        mean, kept, clipped = self._clipped(updates, bound, context)
        # Each counts as 1/2 or -1/2, so that one client moves the count by 1/2 at most (their section 2.2).
        count = (kept - clipped) - kept / 2
        noise = gaussian(1, plan.count_noise, plan.noise_source, stream(context.seed, "clip", context.round))
        below = (count + float(noise)) / context.expected + 0.5
        state["clip"] = bound * math.exp(-self.rate * (below - self.quantile))
        mean.extras["clip"] = torch.tensor(bound)
        return mean


@dataclass(frozen=True)
class FixedDenominatorMean:
    """The sum over the expected cohort size, whatever the realised one (McMahan et al. 2018, their first estimator).

    For messages that their clients have clipped and noised (:class:`~privbench.defenses.local.ClientNoise`): their
    noise is far longer than C, so it clips nothing, and one client can move the sum as far as it likes. A message that
    isn't finite is left out; the clients' mechanism sends none. Extras are dropped, since no noise covers them.
    """

    bounded = False

    def check(self, facts: "Facts") -> None:
        pass

    def combine(self, updates: Iterable[Update], state: dict[str, Any], context: RoundContext) -> Update:
        return summed(updates, context, self)

    def of_sum(self, total: Sum) -> Update:
        mean = total.mean(normaliser=total.context.expected)
        mean.extras.clear()
        return mean


def summed(updates: Iterable[Update], context: RoundContext, rule: SumRule) -> Update:
    """What ``rule`` makes of the sum of all sound updates; the record names whose aren't."""
    total, screen = Sum(context), Screen(context)
    for update, _ in screen.passed(updates):
        total.add(update)
    made = rule.of_sum(total)
    if screen.seen:
        made.extras["screened"] = screen.names
    return made


def clip_factor(norm: float | Tensor, bound: float) -> float:
    """``min(1, C / norm)`` with the rounding of float32 kept on the safe side."""
    return min(1.0, bound / max(float(norm), 1e-12) * (1 - 1e-6))
