"""Guarantees bound to a federation: what they refuse, and what they state."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.sampling import cohort
from privbench.defenses.accounting import ClientLevel, Facts, RecordLevel
from privbench.defenses.accounting.accountant import Terms, epsilon


def facts(**changes) -> Facts:
    fields = {
        "clients": 100,
        "rounds": 20,
        "participation": 0.1,
        "sampling": "poisson",
        "records": (40,) * 100,
        "batch": (10,) * 100,
        "steps": (4,) * 100,
    }
    return Facts(**{**fields, **changes})


@pytest.mark.parametrize("kind", [ClientLevel, RecordLevel])
@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({}, "epsilon"),
        ({"epsilon": 1.0, "noise_multiplier": 1.0}, "epsilon"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": math.inf}, "epsilon"),
        ({"noise_multiplier": -1.0}, "noise_multiplier"),
        ({"noise_multiplier": math.nan}, "noise_multiplier"),
        ({"epsilon": 1.0, "clip": 0.0}, "clip"),
        ({"epsilon": 1.0, "clip": math.inf}, "clip"),
        ({"epsilon": 1.0, "delta": 0.0}, "delta"),
        ({"epsilon": 1.0, "delta": 1.0}, "delta"),
    ],
)
def test_bad_guarantees_are_refused(kind, values, field):
    with pytest.raises(ConfigError) as caught:
        kind(**{"delta": 1e-5, "clip": 1.0, **values})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("guarantee", "units"),
    [(ClientLevel, 100), (RecordLevel, 4000)],
)
def test_delta_is_below_one_over_the_units(guarantee, units):
    for delta in (1 / units, 2 / units):
        with pytest.raises(ConfigError, match="delta"):
            guarantee(delta=delta, clip=1.0, noise_multiplier=1.0).bind(facts())
    guarantee(delta=0.99 / units, clip=1.0, noise_multiplier=1.0).bind(facts())


def test_amplification_needs_poisson_sampling():
    guarantee = ClientLevel(delta=1e-3, clip=1.0, epsilon=8.0)
    with pytest.raises(ConfigError, match="poisson"):
        guarantee.bind(facts(sampling="fixed"))
    assert guarantee.bind(facts(sampling="fixed", participation=1.0)).noise_multiplier > 1
    amplified = guarantee.bind(facts()).noise_multiplier
    assert amplified < guarantee.bind(facts(participation=1.0)).noise_multiplier


def test_cohorts_of_a_fixed_size_have_an_accountant_of_their_own():
    """Not the one of Poisson sampling: more noise for the same epsilon, and another adjacency."""
    fixed = ClientLevel(delta=1e-3, clip=1.0, epsilon=8.0, adjacency="replace", accountant="rdp")
    plan = fixed.bind(facts(sampling="fixed"))
    assert plan.noise_multiplier > ClientLevel(delta=1e-3, clip=1.0, epsilon=8.0).bind(facts()).noise_multiplier
    stated = plan.statements([plan.charge(r, range(10)) for r in range(1, 21)])[0]
    assert (stated["adjacency"], stated["sampling"]) == ("replace", "fixed")
    assert 7.9 < stated["epsilon"] <= 8.0
    for guarantee in (
        ClientLevel(delta=1e-3, clip=1.0, epsilon=8.0, accountant="rdp"),
        ClientLevel(delta=1e-3, clip=1.0, noise_multiplier=1.0, accountant="rdp"),
    ):
        with pytest.raises(ConfigError, match=r"accountant.*adjacency replace alone"):
            guarantee.bind(facts(sampling="fixed"))


@given(st.integers(2, 200), st.floats(1e-3, 1.0))
@settings(max_examples=50, deadline=None)
def test_a_fixed_cohort_has_the_rate_at_which_it_is_drawn(clients, participation):
    """Rounding to whole clients may draw more than was asked for: 1% of 20 clients is one of them, 5%."""
    given = facts(clients=clients, participation=participation, sampling="fixed")
    drawn = cohort(clients, participation, "fixed", torch.Generator().manual_seed(0))
    assert (given.rate, given.expected) == (len(drawn) / clients, len(drawn))


def test_epsilon_of_a_fixed_cohort_is_of_its_share_of_the_clients():
    guarantee = ClientLevel(delta=1e-3, clip=1.0, epsilon=8.0, adjacency="replace", accountant="rdp")
    plan = guarantee.bind(facts(clients=20, participation=0.01, sampling="fixed"))
    told = plan.statements([plan.charge(r, [0]) for r in range(1, 21)])[0]
    assert told["history"] == [[0.05, plan.noise_multiplier, 20]]
    assert told["sampling_rate"] == 0.05
    exact = Terms("rdp", "replace", "fixed").epsilon([((0.05, plan.noise_multiplier), 20)], 1e-3)
    assert exact <= told["epsilon"] <= 8.0
    assert plan.noise_std(1) == pytest.approx(plan.noise_multiplier), "the sum of one client is divided by one"


@pytest.mark.parametrize("kind", [ClientLevel, RecordLevel])
def test_replacement_needs_more_noise_and_says_so(kind):
    plans = [kind(delta=1e-5, clip=1.0, epsilon=4.0, adjacency=a).bind(facts()) for a in ("add_remove", "replace")]
    assert plans[1].noise_multiplier > 1.1 * plans[0].noise_multiplier
    stated = plans[1].statements([plans[1].charge(r, [0]) for r in range(1, 21)])
    assert {s["adjacency"] for s in stated} == {"replace"}
    assert {s["rdp_epsilon"] for s in stated if s["epsilon"] is not None} == {None}, "it has no proof"


def test_client_level_statements():
    plan = ClientLevel(delta=1e-3, clip=0.5, epsilon=8.0).bind(facts())
    ledger = [plan.charge(r, range(7)) for r in range(1, 21)]
    outside, operator = plan.statements(ledger)
    assert (outside["adversary"], operator["adversary"]) == ("model_recipient", "server_operator")
    assert 7.9 < outside["epsilon"] <= 8.0
    assert operator["epsilon"] is None, "a plaintext channel's server reads every update"
    assert outside["unit"] == operator["unit"] == "client"
    assert outside["simulated"]
    assert plan.statements(ledger[:10])[0]["epsilon"] < outside["epsilon"]
    assert plan.statements([])[0]["epsilon"] == 0
    exact = epsilon([((0.1, plan.noise_multiplier), 20)], 1e-3)
    assert exact <= outside["epsilon"] <= exact + 1e-4, "rounded up"


def test_record_level_statements():
    guarantee = RecordLevel(delta=1e-5, clip=1.0, epsilon=8.0, noise_source="system")
    plan = guarantee.bind(facts(records=(40, 400) * 50, batch=(10, 10) * 50, steps=(4, 40) * 50))
    small, large = plan.sigmas[0], plan.sigmas[1]
    assert small > large
    assert plan.noise_multiplier == large
    ledger = [plan.charge(r, [0, r]) for r in range(1, 21)]
    for statement in plan.statements(ledger):
        assert 7.9 < statement["epsilon"] <= 8.0
        # System noise, but batches are drawn from the run's seed, and epsilon rests on them.
        assert (statement["unit"], statement["simulated"]) == ("record", True)
        assert (statement["participations_counted"], statement["participations_realised"]) == (20, 20)
    assert {s["adversary"] for s in plan.statements(ledger)} == {"server_operator", "model_recipient"}


def test_without_noise_there_is_no_epsilon():
    for plan in (
        ClientLevel(delta=1e-3, clip=1.0, noise_multiplier=0.0).bind(facts()),
        RecordLevel(delta=1e-5, clip=1.0, noise_multiplier=0.0).bind(facts()),
    ):
        assert all(s["epsilon"] is None for s in plan.statements([plan.charge(1, [0])]))


LEVELS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "central": (ClientLevel, {}, "model_recipient"),
    "local": (ClientLevel, {"noise": "local"}, "server_operator"),
    "banded": (ClientLevel, {"bands": 3}, "model_recipient"),
    "record": (RecordLevel, {}, "server_operator"),
}


@pytest.mark.parametrize("lost", [1, 4])
@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("central", {}),
        ("local", {}),
        ("local", {"cap": 4}),
        ("local", {"separation": 3}),
        ("banded", {"separation": 3}),
        ("banded", {"separation": 3, "cap": 2}),
        ("record", {}),
        ("record", {"cap": 3}),
    ],
    ids=str,
)
def test_rounds_that_are_affordable_beside_lost_attempts_are_within_the_budget(name, limits, lost):
    kind, own, adversary = LEVELS[name]
    given = facts(sampling="poisson" if name == "central" else "fixed", **limits)

    def spent(plan: Any, rounds: int, again: int) -> float:
        ledger = [plan.charge(r, [0]) for r in [*[1] * again, *range(1, rounds + 1)]]
        return next(s["epsilon"] for s in plan.statements(ledger) if s["adversary"] == adversary)

    free = kind(delta=1e-5, clip=1.0, noise_multiplier=4.0, **own)
    plan = replace(free, budget=spent(free.bind(given), 13, 0)).bind(given)
    most = plan.affordable(lost)
    assert 0 <= most <= 20
    assert most == 0 or spent(plan, most, lost) <= plan.guarantee.budget + 1e-4
    assert most == 20 or spent(plan, most + 1, lost) > plan.guarantee.budget
    assert most < 13 or limits, "attempts take the place of rounds"


def test_a_row_that_is_released_again_costs_whoever_was_in_the_rows_before_it():
    """However often it was: with every attempt clients are counted for who take part in none."""
    plan = ClientLevel(delta=1e-5, clip=1.0, noise_multiplier=4.0, bands=3).bind(
        facts(sampling="fixed", separation=3, cap=2)
    )
    stated = plan.statements([plan.charge(r, [0]) for r in [1, 2, 2, 2, *range(3, 21)]])[0]
    assert stated["history"] == [[1.0, 4.0, 2 + 2]]


@pytest.mark.parametrize(("kind", "budget"), [(ClientLevel, 1.0), (RecordLevel, 2.0)])
def test_a_budget_allows_as_many_attempts_as_it_pays_for(kind, budget):
    guarantee = kind(delta=1e-5, clip=1.0, noise_multiplier=2.0, budget=budget)
    plan = guarantee.bind(facts())
    affordable = plan.affordable()
    assert affordable is not None
    assert 1 <= affordable < 20
    ledger = [plan.charge(r, [0]) for r in range(1, affordable + 2)]
    within, beyond = (max(s["epsilon"] or 0.0 for s in plan.statements(x)) for x in (ledger[:-1], ledger))
    assert within <= budget < beyond
    assert kind(delta=1e-5, clip=1.0, noise_multiplier=2.0).bind(facts()).affordable() is None
    with pytest.raises(ConfigError, match=r"budget.*first round takes"):
        kind(delta=1e-5, clip=1.0, noise_multiplier=2.0, budget=1e-3).bind(facts())
    for bad in (0.0, -1.0, math.inf):
        with pytest.raises(ConfigError, match="budget"):
            kind(delta=1e-5, clip=1.0, noise_multiplier=2.0, budget=bad)
