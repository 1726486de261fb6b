"""The noise that a client-level mechanism really adds, measured on it alone: no data, no training, nobody's updates."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.server import RoundContext
from privbench.benchmarks.federation.update import Layout, Update
from privbench.defenses import Defense
from privbench.defenses.accounting import ClientPlan


@dataclass(frozen=True)
class NoiseStd:
    """Standard deviation of the noise on each coordinate of a vector.

    Args:
        theory: by the plan.
        measured: root mean square of a vector that is noise alone.
        low, high: the 95% interval of what was measured, from the chi-squared distribution.
    """

    theory: float
    measured: float
    low: float
    high: float


def noise_std(defense: Defense, plan: ClientPlan, layout: Layout, seed: int) -> NoiseStd:
    """The noise on the released mean: zero updates of an expected cohort, sent through local, aggregation and release.

    Draws come from streams of their own, so that measuring changes nothing of a run.
    """
    clients = max(1, round(plan.expected))
    context = RoundContext(
        seed=seed,
        round=0,
        invited=tuple(range(clients)),
        expected=plan.expected,
        weighting="equal",
        layout=layout,
        kind="update",
        learning_rate=1.0,
        plan=plan,
        watched=frozenset(),
    )
    zero = Update(torch.zeros(layout.size), layout, "update", 1)
    messages = (defense.local.send(zero, c, plan, stream(seed, "noise_std", 0, c)) for c in range(clients))
    mean = defense.aggregation.combine(messages, {}, context)
    released = defense.release.release(mean, {}, context, stream(seed, "noise_std"))
    return estimate(released.vector, plan.noise_std(clients))


def estimate(noise: Tensor, theory: float) -> NoiseStd:
    """From ``(d,)`` independent draws of N(0, std^2): d measured^2 / std^2 is chi-squared with d degrees of freedom."""
    d = len(noise)
    measured = math.sqrt(float(noise.double().square().mean()))
    low, high = (measured * math.sqrt(d / float(stats.chi2.ppf(p, d))) for p in (0.975, 0.025))
    return NoiseStd(theory, measured, low, high)


def rows(defense: Defense, plan: ClientPlan, layout: Layout, seed: int, round: int) -> Iterator[dict[str, Any]]:
    """Metric rows ``noise_std`` (theory) and ``noise_std_measured``; both say whose noise it is, and of how many."""
    found = noise_std(defense, plan, layout, seed)
    sampled = plan.guarantee.noise == "central" and plan.facts.rate < 1
    of = {"round": round, "noise": plan.guarantee.noise, "cohort": plan.expected, "amplified": sampled}
    yield {"metric": "noise_std", **of, "value": found.theory}
    yield {"metric": "noise_std_measured", **of, "value": found.measured, "low": found.low, "high": found.high}
