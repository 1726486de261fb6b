"""A cap on how often one client takes part: enforced, counted, and refused where it breaks a proof."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.sampling import cohort
from privbench.benchmarks.federation.settings import FederationSettings
from privbench.defenses import Defense
from privbench.defenses.accounting import ClientLevel, Facts, RecordLevel
from privbench.defenses.accounting.statement import Subject, document
from privbench.defenses.accounting.verification import verify
from privbench.defenses.aggregation import ClippedMean, FixedDenominatorMean
from privbench.defenses.channel import Attested
from privbench.defenses.local import DPSGD, ClientNoise
from privbench.defenses.release import CentralGaussian

RECORD = Defense(local=DPSGD(), privacy=RecordLevel(delta=1e-4, clip=1.0, noise_multiplier=1.0))
NOISY = ClientLevel(delta=1e-3, clip=1.0, noise_multiplier=2.0, noise="local")
LOCAL = Defense(local=ClientNoise(), aggregation=FixedDenominatorMean(), privacy=NOISY)


def facts(**given: Any) -> Facts:
    return replace(Facts(10, 20, 0.3, "fixed", (50,) * 10, (5,) * 10, (10,) * 10), **given)


def test_who_is_spent_is_passed_over():
    everybody = cohort(6, 0.5, "fixed", stream(0, "cohort", 1))
    others = cohort(6, 0.5, "fixed", stream(0, "cohort", 1), spent=set(everybody))
    assert len(others) == 3
    assert not set(others) & set(everybody)
    assert len(cohort(6, 0.5, "fixed", stream(0, "cohort", 1), spent={0, 1, 2, 3})) == 2
    assert cohort(6, 0.5, "poisson", stream(0, "cohort", 1), spent=set(range(6))) == ()


@pytest.mark.parametrize("sampling", ["fixed", "poisson"])
def test_nobody_takes_part_more_often(federate, sampling):
    done = federate(clients=6, rounds=8, participation=0.5, max_participations=4, sampling=sampling)
    times = Counter(c for r in done.rounds for c in r.invited)
    assert max(times.values()) == 4
    free = federate(clients=6, rounds=8, participation=0.5, sampling=sampling)
    assert max(Counter(c for r in free.rounds for c in r.invited).values()) > 4, "without a cap somebody does"


@pytest.mark.parametrize("defense", [RECORD, LOCAL], ids=["record", "client"])
def test_epsilon_counts_the_cap_and_the_statement_is_verified(defense):
    assert defense.privacy is not None
    stated = {}
    for cap in (None, 8):
        plan = defense.privacy.bind(facts(cap=cap))
        ledger = [plan.charge(r, [(r + i) % 10 for i in range(3)]) for r in range(1, 21)]
        stated[cap] = next(s for s in plan.statements(ledger) if s["adversary"] == "server_operator")
        written = document(plan, ledger, [3] * 20, Subject("run", {}, "0" * 64))
        assert all(c.fault is None for c in verify(written.statement, written.opening))
        lie = {**written.statement, "sampling": {**written.statement["sampling"], "most_participations": 3}}
        assert any(c.fault for c in verify(lie)), "a cap that the history doesn't have"
    per_round = 10 if defense is RECORD else 1
    assert sum(n for *_, n in stated[8]["history"]) == 8 * per_round
    assert sum(n for *_, n in stated[None]["history"]) == 20 * per_round
    assert stated[8]["epsilon"] < stated[None]["epsilon"]


def test_noise_is_calibrated_to_the_cap():
    some = [replace(NOISY, noise_multiplier=None, epsilon=8.0).bind(facts(cap=cap)) for cap in (None, 8)]
    assert some[0].noise_multiplier / some[1].noise_multiplier == pytest.approx((20 / 8) ** 0.5, rel=1e-3)


def test_a_budget_lasts_longer_where_nobody_takes_part_in_all():
    level = RecordLevel(delta=1e-4, clip=1.0, noise_multiplier=1.0, budget=5.0)
    free, capped = (level.bind(facts(cap=cap)).affordable() for cap in (None, 6))
    assert free is not None
    assert free < 20
    assert capped == 20, "all rounds"


def test_attempts_that_were_cut_off_count_as_participations():
    spent = facts(cap=2).spent({0: [1, 1], 1: [1], 2: [2, 3]}, 4)
    assert spent == {0, 2}
    assert facts(separation=3).spent({0: [2], 1: [1]}, 4) == {0}, "it was in an attempt two rounds ago"
    assert facts().spent({0: [4, 4]}, 4) == set(), "without a limit it may be tried again at once"
    assert facts(cap=8).counted(6, lost=1) == 7
    assert facts(cap=8).counted(20, lost=5) == 8


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("max_participations", lambda f: FederationSettings(rounds=10, participation=0.5, max_participations=4)),
        (
            "federation.max_participations",
            lambda f: f(
                participation=0.5,
                max_participations=2,
                defense=Defense(
                    aggregation=ClippedMean(), release=CentralGaussian(), privacy=replace(NOISY, noise="central")
                ),
            ),
        ),
        (
            "federation.max_participations",
            lambda f: f(participation=0.5, max_participations=2, defense=Defense(channel=Attested())),
        ),
    ],
    ids=["below the mean", "amplified", "attested"],
)
def test_what_does_not_fit_is_named(federate, field, make):
    with pytest.raises(ConfigError) as caught:
        make(federate)
    assert caught.value.field == field
