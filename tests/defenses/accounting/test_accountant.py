"""Epsilon of a history by each accountant: tight, never below a rigorous lower bound, refused without a proof."""

import math
import tracemalloc
from functools import partial

import numpy as np
import pytest
from dp_accounting import NeighboringRelation
from dp_accounting.pld import privacy_loss_distribution as losses
from opacus.accountants.analysis.rdp import compute_rdp

from privbench.defenses.accounting.accountant import ACCOUNTANTS, Terms, accountant_name, epsilon
from privbench.defenses.accounting.history import Uncovered, summed
from privbench.defenses.accounting.pld import PLD
from privbench.defenses.accounting.rdp import _gaussian

ROWS = [
    (0.01, 4, 10000, 0.947, 1.035),
    (0.05, 1, 200, 4.766, 5.368),
    (1, 5, 100, 9.99726, 10.726),
    (1, 1, 1, 4.3772, 4.7285),
    (256 / 60000, 1.1, 14062, 2.382, 2.597),
]


def lower_bound(rate: float, sigma: float, steps: int, delta: float, relation: NeighboringRelation) -> float:
    """Rigorous: losses rounded down."""
    step = losses.from_gaussian_mechanism(
        sigma,
        sampling_prob=rate,
        pessimistic_estimate=False,
        value_discretization_interval=1e-3,
        use_connect_dots=False,
        neighboring_relation=relation,
    )
    return step.self_compose(steps).get_epsilon_for_delta(delta)


@pytest.mark.parametrize(("rate", "sigma", "steps", "tight", "renyi"), ROWS)
def test_epsilon_is_tight(rate, sigma, steps, tight, renyi):
    """Upper bounds at delta 1e-5; the third and fourth are closed forms (Balle and Wang 2018)."""
    history = [((rate, sigma), steps)]
    assert tight - 0.001 <= epsilon(history, 1e-5) <= tight + 0.02
    assert tight - 0.001 <= Terms("prv").epsilon(history, 1e-5) <= tight + 0.02
    assert Terms("rdp").epsilon(history, 1e-5) == pytest.approx(renyi, rel=5e-3)
    assert Terms().renyi(history, 1e-5) == Terms("rdp").epsilon(history, 1e-5)


@pytest.mark.parametrize(("rate", "sigma", "steps"), [(0.5, 0.3, 500), (0.2, 0.6, 100), (0.6, 0.6, 100)])
def test_renyi_has_the_orders_whose_series_dp_accounting_gives_up(rate, sigma, steps):
    """Opacus' series goes on for longer. It is slow, so there are few orders; the first row is the reference's 1568."""
    orders = [1.1, 1.3, 1.6]
    moments = np.atleast_1d(compute_rdp(q=rate, noise_multiplier=sigma, steps=steps, orders=orders))
    assert [steps * _gaussian(rate, sigma, order) for order in orders] == pytest.approx(moments, rel=1e-6)
    found = Terms("rdp").epsilon([((rate, sigma), steps)], 1e-5)
    bounds = [m + math.log1p(-1 / a) - math.log(1e-5 * a) / (a - 1) for m, a in zip(moments, orders, strict=True)]
    assert found <= min(bounds) * (1 + 1e-6)
    assert found > epsilon([((rate, sigma), steps)], 1e-5)
    if sigma == 0.3:
        assert found == pytest.approx(1567.67, rel=1e-4)


COVERED = [
    ("pld", "add_remove", 0.02, 0.8, 500),
    ("prv", "add_remove", 0.02, 0.8, 500),
    ("rdp", "zero_out", 0.02, 0.8, 500),
    ("pld", "replace", 0.02, 0.8, 500),
    ("pld", "replace", 0.3, 3.0, 50),
    ("pld", "replace", 1, 2.0, 10),
    ("prv", "replace", 1, 2.0, 10),
    ("rdp", "replace", 1, 2.0, 10),
]


@pytest.mark.parametrize(("name", "adjacency", "rate", "sigma", "steps"), COVERED)
def test_never_below_the_rigorous_lower_bound(name, adjacency, rate, sigma, steps):
    relation = NeighboringRelation.REPLACE_ONE if adjacency == "replace" else NeighboringRelation.ADD_OR_REMOVE_ONE
    low = lower_bound(rate, sigma, steps, 1e-5, relation)
    found = Terms(name, adjacency).epsilon([((rate, sigma), steps)], 1e-5)
    assert low <= found <= 1.25 * low


def test_a_high_privacy_is_not_overstated_by_missing_orders():
    """Orders up to 1024 alone give ten times too much."""
    history = [((1.0, 1000.0), 1)]
    assert Terms("rdp").epsilon(history, 1e-5) <= 1.3 * epsilon(history, 1e-5)


def test_cohorts_of_a_fixed_size_have_one_proof():
    history = [((0.1, 2.0), 50)]
    fixed = partial(Terms, sampling="fixed")
    value = fixed("rdp", "replace").epsilon(history, 1e-5)
    # Amplified, and no better than Poisson sampling under the same adjacency.
    assert Terms("pld", "replace").epsilon(history, 1e-5) < value
    assert value < Terms("pld", "replace").epsilon([((1.0, 2.0), 50)], 1e-5)
    for refused in (fixed("pld", "replace"), fixed("prv", "replace"), fixed("rdp", "add_remove")):
        with pytest.raises(Uncovered, match=r"rdp|replace"):
            refused.epsilon(history, 1e-5)
    # Where all take part there is nothing to sample.
    whole = [((1.0, 2.0), 50)]
    assert fixed("pld").epsilon(whole, 1e-5) == epsilon(whole, 1e-5)


@pytest.mark.parametrize("name", ["prv", "rdp"])
def test_replacement_under_poisson_sampling_is_refused_by_those_without_a_proof(name):
    with pytest.raises(Uncovered, match="pld"):
        Terms(name, "replace").epsilon([((0.1, 2.0), 50)], 1e-5)
    assert Terms("pld", "replace").renyi([((0.1, 2.0), 50)], 1e-5) is None


def test_replacement_without_sampling_is_twice_as_far():
    for name in ACCOUNTANTS:
        replaced = Terms(name, "replace").epsilon([((1.0, 2.0), 5)], 1e-5)
        assert replaced == Terms(name).epsilon([((1.0, 1.0), 5)], 1e-5)


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


def test_edges():
    assert epsilon([], 1e-5) == 0
    assert epsilon([((0.1, 1.0), 0)], 1e-5) == 0
    assert epsilon([((0.1, 0.0), 1)], 1e-5) == math.inf
    assert epsilon([((0.1, 0.0), 1), ((0.1, 5.0), 1)], 1e-5) == math.inf


@pytest.mark.parametrize(("step", "times"), [((0.05, 1.0), 200), ((0.3, 5.0), 100), ((0.01, 4.0), 5000)])
def test_a_coarser_grid_is_never_below(step, times):
    fine, *coarse = (PLD(i).epsilon(summed([(step, times)]), 1e-5, "add_remove", "poisson") for i in (1e-4, 1e-3, 3e-3))
    assert all(fine - 1e-6 <= found <= 1.2 * fine for found in coarse)
    assert fine - 1e-6 <= epsilon([(step, times)], 1e-5) <= 1.0003 * fine
