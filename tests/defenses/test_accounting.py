import math
import tracemalloc

import pytest

from privbench.benchmarks.build import ConfigError
from privbench.defenses.accounting import ClientLevel, Facts, RecordLevel
from privbench.defenses.accounting.accountant import accountant_name, epsilon, noise_multiplier


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


@pytest.mark.parametrize(
    ("rate", "sigma", "steps", "tight"),
    [
        (0.01, 4, 10000, 0.947),
        (0.05, 1, 200, 4.766),
        (1, 5, 100, 9.99726),
        (1, 1, 1, 4.3772),
        (256 / 60000, 1.1, 14062, 2.382),
    ],
)
def test_epsilon_is_tight(rate, sigma, steps, tight):
    """Upper bounds at delta 1e-5; the third and fourth are closed forms (Balle and Wang 2018)."""
    assert tight - 0.001 <= epsilon([((rate, sigma), steps)], 1e-5) <= tight + 0.02


def test_the_gaussian_mechanism_against_its_closed_form():
    """delta = Phi(1/2s - e s) - exp(e) Phi(-1/2s - e s) (Balle and Wang 2018, Theorem 8)."""
    phi = lambda x: math.erfc(-x / math.sqrt(2)) / 2  # noqa: E731
    for sigma in (0.7, 2.0, 20.0):
        e = epsilon([((1.0, sigma), 1)], 1e-5)
        delta = phi(1 / (2 * sigma) - e * sigma) - math.exp(e) * phi(-1 / (2 * sigma) - e * sigma)
        assert delta == pytest.approx(1e-5, rel=1e-9)


def test_unsampled_steps_compose_to_one_gaussian():
    """mu^2 = sum of times / sigma^2, as privacy loss distributions find too."""
    mixed = [((1.0, 2.0), 3), ((1.0, 5.0), 40)]
    one = 1 / math.sqrt(3 / 4 + 40 / 25)
    assert epsilon(mixed, 1e-5) == pytest.approx(epsilon([((1.0, one), 1)], 1e-5), rel=1e-12)
    nearly = [((1 - 1e-9, sigma), times) for (_, sigma), times in mixed]
    assert epsilon(mixed, 1e-5) == pytest.approx(epsilon(nearly, 1e-5), rel=1e-3)


@pytest.mark.timeout(20)
def test_little_noise_costs_neither_memory_nor_time():
    """Without sampling epsilon is near mu^2/2 + mu z, z the normal quantile of 1 - delta, where epsilon is large."""
    for sigma in (0.02, 1e-4, 1e-150):
        mu = math.sqrt(20) / sigma
        assert epsilon([((1.0, sigma), 20)], 1e-5) == pytest.approx(mu**2 / 2 + 4.2649 * mu, rel=1e-4)
    tracemalloc.start()
    for step in [((0.1, 0.02), 20), ((0.5, 0.02), 2000), ((0.5, 10.0), 100000)]:
        assert 0 < epsilon([step], 1e-5) < epsilon([((1.0, step[0][1]), step[1])], 1e-5)
    assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    tracemalloc.stop()
    # Below, sampling is left out, which is an upper bound.
    assert epsilon([((0.1, 0.005), 20)], 1e-5) == epsilon([((1.0, 0.005), 20)], 1e-5)


def test_the_accountant_is_named():
    assert accountant_name([((0.05, 1.0), 200)], 1e-5) == "dp-accounting PLD, value_discretization_interval 0.0016"
    assert accountant_name([((1.0, 1.0), 5)], 1e-5) == "analytic Gaussian mechanism (Balle and Wang 2018)"
    assert accountant_name([((0.1, 1e-3), 5)], 1e-5).endswith("amplification by sampling ignored")
    assert accountant_name([((0.1, 0.0), 5)], 1e-5) == accountant_name([], 1e-5) == "none needed"


def test_a_history_adds_up_in_any_order():
    whole = epsilon([((0.1, 1.5), 60)], 1e-5)
    assert epsilon([((0.1, 1.5), 1)] * 60, 1e-5) == whole
    mixed = [((0.1, 1.5), 10), ((0.2, 2.0), 5)]
    assert epsilon(mixed, 1e-5) == epsilon(mixed[::-1], 1e-5)
    assert epsilon(mixed, 1e-5) > epsilon(mixed[:1], 1e-5)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("target", "rate", "steps"), [(8, 1, 20000), (1000, 0.1, 20), (1000, 1, 20), (0.01, 0.01, 50)])
def test_calibration_ends_at_extremes_too(target, rate, steps):
    sigma = noise_multiplier(target, 1e-5, rate, steps)
    assert 0.998 * target <= epsilon([((rate, sigma), steps)], 1e-5) <= target


def test_calibration_does_not_depend_on_what_was_calibrated_before():
    noise_multiplier.cache_clear()
    first = noise_multiplier(4.0, 1e-5, 0.1, 100)
    noise_multiplier.cache_clear()
    noise_multiplier(4.0, 1e-5, 0.11, 100)
    assert noise_multiplier(4.0, 1e-5, 0.1, 100) == first


def test_a_target_out_of_reach_is_said():
    with pytest.raises(ValueError, match="no noise multiplier"):
        noise_multiplier(1.0, 1e-17, 0.1, 10)


def test_edges():
    assert epsilon([], 1e-5) == 0
    assert epsilon([((0.1, 1.0), 0)], 1e-5) == 0
    assert epsilon([((0.1, 0.0), 1)], 1e-5) == math.inf
    assert epsilon([((0.1, 0.0), 1), ((0.1, 5.0), 1)], 1e-5) == math.inf


def test_a_coarser_grid_is_never_below():
    for step, times in [((0.05, 1.0), 200), ((0.3, 5.0), 100), ((0.01, 4.0), 5000)]:
        fine = epsilon([(step, times)], 1e-5, 1e-4)
        for interval in (1e-3, 3e-3):
            assert fine - 1e-6 <= epsilon([(step, times)], 1e-5, interval) <= 1.2 * fine
        assert fine - 1e-6 <= epsilon([(step, times)], 1e-5) <= 1.0003 * fine


@pytest.mark.parametrize(
    ("target", "delta", "rate", "steps"),
    [
        (8, 1e-5, 10 / 90, 180),
        (1, 1e-5, 0.01, 1000),
        (8, 1e-3, 0.5, 20),
        (0.1, 1e-5, 1, 1),
        (50, 1e-5, 0.5, 100),
        (0.1, 1e-5, 0.01, 1000),
    ],
)
def test_calibration_is_sound_and_tight(target, delta, rate, steps):
    sigma = noise_multiplier(target, delta, rate, steps)
    assert 0.998 * target <= epsilon([((rate, sigma), steps)], delta) <= target
    assert epsilon([((rate, sigma * 0.998), steps)], delta) > target


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
