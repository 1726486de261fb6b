"""A clip that follows a quantile, and what it costs (Andrew et al. 2021)."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.server import RoundContext
from privbench.benchmarks.federation.update import Layout, Update
from privbench.defenses import Defense
from privbench.defenses.accounting import ClientLevel, Facts
from privbench.defenses.accounting.accountant import Terms
from privbench.defenses.aggregation import AdaptiveClippedMean, ClippedMean
from privbench.defenses.local import ClientNoise
from privbench.defenses.release import CentralGaussian

LAYOUT = Layout(("w",), ((4,),), 4)


@dataclass(frozen=True)
class Quiet:
    """A plan whose noise is as small as one likes."""

    clip: float = 1.0
    update_multiplier: float = 0.0
    count_noise: float = 1e-9
    noise_source: str = "seeded"
    unit: str = "client"


def context(plan: Any, round: int = 1, expected: float = 10.0) -> RoundContext:
    return RoundContext(0, round, (), expected, "equal", LAYOUT, "update", 0.1, plan, frozenset())


def updates(norms: list[float]) -> list[Update]:
    return [Update(torch.tensor([n, 0.0, 0.0, 0.0]), LAYOUT, "update", 1) for n in norms]


def facts(clients: int = 100, rounds: int = 50, participation: float = 1.0) -> Facts:
    return Facts(clients, rounds, participation, "poisson", (10,) * clients, (5,) * clients, (2,) * clients)


def level(**given: Any) -> ClientLevel:
    return ClientLevel(**{"delta": 1e-3, "clip": 1.0, "noise_multiplier": 4.0, "adaptive": True, **given})


@pytest.mark.parametrize(("quantile", "between"), [(0.5, (5.0, 6.0)), (0.8, (8.0, 9.0)), (0.1, (1.0, 2.0))])
def test_the_clip_comes_to_the_quantile(quantile, between):
    rule, state = AdaptiveClippedMean(quantile=quantile, rate=0.3), {}
    norms = [float(n) for n in range(1, 11)]
    for number in range(1, 200):
        found = rule.combine(updates(norms), state, context(Quiet(clip=0.1), number))
    assert between[0] * 0.95 <= state["clip"] <= between[1] * 1.05
    clip = float(found.extras["clip"])
    assert float(found.vector[0]) == pytest.approx(sum(min(n, clip) for n in norms) / 10, rel=1e-5)


def test_one_round_is_the_papers_update():
    state: dict[str, Any] = {"clip": 3.5}
    AdaptiveClippedMean(quantile=0.5, rate=0.2).combine(updates([1.0, 2.0, 3.0, 4.0]), state, context(Quiet()))
    # Three of four below: (3 - 4/2) / 10 + 1/2, since the expected cohort is ten.
    assert state["clip"] == pytest.approx(3.5 * math.exp(-0.2 * (0.6 - 0.5)))


def test_an_update_that_is_not_finite_counts_for_nothing():
    one: dict[str, Any] = {}
    two: dict[str, Any] = {}
    rule = AdaptiveClippedMean()
    rule.combine(updates([0.5, 2.0, math.nan]), one, context(Quiet()))
    rule.combine(updates([0.5, 2.0]), two, context(Quiet()))
    assert one == two
    none: dict[str, Any] = {}
    found = rule.combine(updates([math.nan, math.inf]), none, context(Quiet(count_noise=5.0)))
    assert not found.vector.any()
    assert none["clip"] != 1.0, "the count's noise is drawn all the same"


def test_an_empty_cohort_still_draws_the_counts_noise():
    state: dict[str, Any] = {}
    AdaptiveClippedMean().combine([], state, context(Quiet(count_noise=5.0)))
    assert state["clip"] != 1.0


def test_both_releases_together_cost_what_the_multiplier_says():
    plan = level(count_noise=3.0).bind(facts())
    assert plan.update_multiplier == pytest.approx((4.0**-2 - 6.0**-2) ** -0.5)
    assert plan.update_multiplier > plan.noise_multiplier
    # One client moves the sum by C and the count by 1/2: two Gaussians at once are one of this multiplier.
    joint = (1 / plan.update_multiplier**2 + 0.25 / plan.count_noise**2) ** -0.5
    assert joint == pytest.approx(plan.noise_multiplier)
    (recipient, _) = plan.statements([plan.charge(r, range(100)) for r in range(1, 51)])
    assert recipient["epsilon"] == pytest.approx(Terms().epsilon([((1.0, 4.0), 50)], 1e-3), abs=1e-3)
    assert "the clip is adapted by a count with noise of 3" in recipient["mechanism"]


def test_the_release_has_the_rounds_clip_and_the_larger_multiplier():
    plan = level(count_noise=3.0).bind(facts())
    mean = Update(torch.zeros(20_000), LAYOUT, "update", 1, {"clip": torch.tensor(0.25)})
    out = CentralGaussian().release(mean, {}, context(plan, expected=100.0), torch.Generator().manual_seed(0))
    assert float(out.vector.std()) == pytest.approx(plan.update_multiplier * 0.25 / 100, rel=0.03)


def test_without_a_count_noise_it_is_the_papers_or_twice_the_multiplier():
    assert level(noise_multiplier=1.0).bind(facts(100)).count_noise == 5.0
    small = level(noise_multiplier=4.0).bind(facts(20))
    assert small.count_noise == 8.0
    assert small.update_multiplier == pytest.approx(4.0 * 1.0328, rel=1e-3)
    assert level(adaptive=False).bind(facts()).update_multiplier == 4.0


def test_too_little_noise_on_the_count_is_refused():
    with pytest.raises(ConfigError, match="more than 2") as caught:
        level(count_noise=1.9).bind(facts())
    assert caught.value.field == "count_noise"


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("adaptive", lambda: level(noise="local")),
        ("count_noise", lambda: level(adaptive=False, count_noise=5.0)),
        ("clip", lambda: AdaptiveClippedMean(clip=1.0)),
        ("quantile", lambda: AdaptiveClippedMean(quantile=1.5)),
        ("count_noise", lambda: level(count_noise=math.inf)),
        ("rate", lambda: AdaptiveClippedMean(rate=0.0)),
        ("rate", lambda: AdaptiveClippedMean(rate=5000.0)),
        (
            "privacy.adaptive",
            lambda: Defense(
                aggregation=AdaptiveClippedMean(), release=CentralGaussian(), privacy=level(adaptive=False)
            ),
        ),
        ("aggregation", lambda: Defense(aggregation=ClippedMean(), release=CentralGaussian(), privacy=level())),
        ("privacy.adaptive", lambda: Defense(aggregation=AdaptiveClippedMean())),
        ("adaptive", lambda: Defense(local=ClientNoise(), privacy=level(noise="distributed"))),
    ],
)
def test_what_does_not_fit_is_named(field, make):
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.field == field


def test_a_run_releases_each_rounds_clip(federate):
    defense = Defense(aggregation=AdaptiveClippedMean(), release=CentralGaussian(), privacy=level(noise_multiplier=0.5))
    done = federate(clients=10, rounds=3, defense=defense, participation=0.5)
    clips = [float(r.released.extras["clip"]) for r in done.rounds]
    assert clips[0] == 1.0
    assert len(set(clips)) == 3
