"""The noise that meets a target: as much as is needed and no more, by the accountant that states it."""

import pytest

from privbench.defenses.accounting.accountant import Terms, epsilon
from privbench.defenses.accounting.calibration import noise_multiplier
from privbench.defenses.accounting.history import Uncovered


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


@pytest.mark.parametrize(
    ("terms", "rate"),
    [
        (Terms("rdp"), 0.1),
        (Terms("prv"), 0.1),
        (Terms("pld", "replace"), 0.1),
        (Terms("rdp", "replace", "fixed"), 0.1),
        (Terms("rdp", "replace"), 1.0),
    ],
)
def test_each_accountant_calibrates_for_itself(terms, rate):
    sigma = noise_multiplier(3.0, 1e-5, rate, 100, terms)
    assert 0.997 * 3 <= terms.epsilon([((rate, sigma), 100)], 1e-5) <= 3
    assert sigma > 1.01 * noise_multiplier(3.0, 1e-5, rate, 100) or terms.accountant == "prv"


def test_terms_without_a_proof_are_refused():
    with pytest.raises(Uncovered):
        noise_multiplier(3.0, 1e-5, 0.1, 100, Terms("pld", "add_remove", "fixed"))
