"""Lower bounds from guesses, against published values, closed forms and randomised response."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privbench.attacks.inference.audit import audit, guess, lower_bound, p_value
from privbench.attacks.inference.power import power


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "delta", "expected"),
    [(1000, 100, 100, 0.0, 3.49), (1000, 1000, 600, 1e-5, 0.297), (1000, 1000, 500, 1e-5, 0.0)],
)
def test_reference_values(canaries, guesses, correct, delta, expected):
    assert lower_bound(canaries, guesses, correct, delta, 0.95) == pytest.approx(expected, abs=0.005)


@given(st.integers(1, 300), st.floats(0.5, 0.99))
def test_all_right_has_a_closed_form(guesses, confidence):
    right = (1 - confidence) ** (1 / guesses)
    expected = max(0.0, math.log(right / (1 - right)))
    assert lower_bound(1000, guesses, guesses, 0.0, confidence) == pytest.approx(expected, abs=1e-4)


@given(st.integers(1, 60), st.data(), st.floats(0, 3), st.floats(0, 1e-3))
def test_p_values_are_probabilities_that_grow_with_what_is_claimed(guesses, data, epsilon, delta):
    correct = data.draw(st.integers(0, guesses))
    small = p_value(100, guesses, correct, epsilon, delta)
    assert 0 <= small <= p_value(100, guesses, correct, epsilon + 0.5, delta) + 1e-12
    assert small >= p_value(100, guesses, correct, epsilon, 0.0)
    assert p_value(100, guesses, correct, math.inf, delta) == pytest.approx(1)


def test_pure_differential_privacy_is_a_binomial_tail():
    q = math.exp(1.2) / (1 + math.exp(1.2))
    expected = stats.binom.sf(59, 80, q)
    assert p_value(500, 80, 60, 1.2, 0.0) == pytest.approx(expected)


def test_randomised_response_is_hardly_ever_refuted():
    """It has exactly its epsilon, so a 90% bound may be above it in one audit of ten."""
    rng, epsilon, above = np.random.default_rng(0), 1.0, 0
    right = math.exp(epsilon) / (1 + math.exp(epsilon))
    for _ in range(200):
        above += lower_bound(200, 200, int(rng.binomial(200, right)), 0.0, 0.9) > epsilon
    assert 5 <= above <= 30


def test_more_right_guesses_than_guesses_are_refused():
    with pytest.raises(ValueError, match="5 right of 4 guesses"):
        p_value(10, 4, 5, 1.0, 0.0)


def test_guesses_are_the_extremes_and_the_rest_abstains():
    scores = np.array([0.1, 5.0, -3.0, 0.2, 4.0, -2.0, 0.0])
    assert guess(scores, 4).tolist() == [0, 1, -1, 0, 1, -1, 0]


def test_an_audit_counts_right_guesses():
    scores = np.arange(8.0)
    included = np.array([0, 1, 0, 0, 0, 0, 1, 1], dtype=bool)
    found = audit(scores, included, 4, 0.0, 0.95)
    assert (found.canaries, found.guesses, found.correct) == (8, 4, 3)


def test_power_is_that_of_simulated_audits():
    """Against its definition, for one Gaussian release whose noise is half of what is claimed."""
    m, sigma, epsilon, delta, confidence = 20000, 1.9045, 2.0, 1e-5, 0.95
    stated = power(m, [(1.0, sigma, 1)], epsilon, delta, confidence, guesses=1000)
    rng, found = np.random.default_rng(1), 0
    for _ in range(20):
        included = rng.random(m) < 0.5
        scores = included + rng.normal(0, sigma / 2, m)
        found += audit(scores, included, 1000, delta, confidence).epsilon > epsilon
    assert stated.power > 0.95
    assert found >= 18


def test_without_a_bug_nothing_is_found_and_few_canaries_find_little():
    history, claimed = [(1.0, 1.9045, 1)], (2.0, 1e-5, 0.95)
    assert power(10000, history, *claimed, noise=1.0, trials=100).power <= 0.05
    assert power(100, history, *claimed).power < 0.2
    assert power(10000, history, *claimed, trials=100).power > 0.5


def test_power_counts_sampling():
    """At the same claim, canaries that are rarely sampled show less."""
    often = power(2000, [(1.0, 2.0, 1)], 0.5, 1e-5, 0.95)
    seldom = power(2000, [(0.05, 2.0, 1)], 0.5, 1e-5, 0.95)
    assert often.power > seldom.power
