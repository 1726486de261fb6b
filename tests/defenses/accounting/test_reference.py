"""Noise on the mean by who adds it, against formulae and figures that were computed elsewhere."""

from math import log, sqrt
from typing import Any

import pytest
from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant

from privbench.benchmarks.sweep import compose
from privbench.defenses.accounting import ClientLevel, Facts
from privbench.defenses.accounting.plan import ClientPlan
from privbench.defenses.accounting.pld import PLD
from privbench.defenses.accounting.rdp import RDP

# N, K, T, epsilon, delta; the central multiplier against model recipients; local noise (calibrated against the host)
# over central noise on the mean, which mixes adversaries.
REFERENCE = [
    (1000, 50, 200, 8.0, 1e-4, 0.7312, 16.6),
    (1000, 50, 200, 2.0, 1e-4, 1.4853, 26.1),
    (100, 10, 100, 8.0, 1e-3, 0.7784, 6.17),
]


def bound(noise: Any, clients: int, cohort: int, rounds: int, epsilon: float, delta: float) -> ClientPlan:
    each = (10,) * clients
    facts = Facts(clients, rounds, cohort / clients, "poisson", each, each, (1,) * clients)
    return ClientLevel(delta=delta * 0.999, clip=0.5, epsilon=epsilon, noise=noise).bind(facts)


@pytest.mark.parametrize(("n", "k", "t", "epsilon", "delta", "sigma", "ratio"), REFERENCE)
def test_noise_agrees_with_the_references_within_one_percent(n, k, t, epsilon, delta, sigma, ratio):
    """Local noise there is for as many participations as a client has on average, ``t * k / n``."""
    central, local = bound("central", n, k, t, epsilon, delta), bound("local", k, k, t * k // n, epsilon, delta)
    assert central.noise_multiplier == pytest.approx(sigma, rel=0.01)
    assert local.noise_std(k) / central.noise_std(k) == pytest.approx(ratio, rel=0.01)
    assert ratio > 1.5 * sqrt(k), "adversaries are mixed: against the same one it is the root of the cohort"


@pytest.mark.parametrize("k", [10, 20, 50])
def test_against_the_same_adversary_it_is_the_root_of_the_cohort(k):
    """Everybody takes part, so that sampling amplifies nothing for anyone."""
    central, local = (bound(noise, k, k, 20, 8.0, 1e-3) for noise in ("central", "local"))
    assert local.noise_std(k) / central.noise_std(k) == pytest.approx(sqrt(k), rel=1e-9)


def test_the_experiment_is_of_the_same_adversary():
    plans = {}
    for defense in ("dp_local_client", "tee_dp", "tee_dp_distributed"):
        plan = compose(["experiment=tee_dp_in_concert", f"defense={defense}", "task=digits"]).federation.plan
        assert isinstance(plan, ClientPlan)
        plans[defense] = plan.noise_std(plan.expected)
    assert plans["dp_local_client"] / plans["tee_dp"] == pytest.approx(sqrt(20), rel=0.01)
    assert plans["tee_dp_distributed"] / plans["tee_dp"] == pytest.approx(1, rel=0.01)


def test_the_epsilon_of_mcmahan_2018_and_what_it_is_by_tighter_accounting():
    """763,430 users, 5,000 expected a round, z = 1, 5,000 rounds: epsilon 4.634 at delta 1e-9 by the moments accountant
    (integer orders to 32, Abadi et al. 2016's conversion)."""
    q, rounds, delta = 5000 / 763_430, 5000, 1e-9
    orders = range(2, 34)
    accountant = RdpAccountant(orders)
    accountant.compose(PoissonSampledDpEvent(q, GaussianDpEvent(1.0)), rounds)
    by_moments = min(r + log(1 / delta) / (order - 1) for r, order in zip(accountant._rdp, orders, strict=True))
    assert by_moments == pytest.approx(4.634, abs=5e-4)
    history = (((q, 1.0), rounds),)
    tight, renyi = (a.epsilon(history, delta, "add_remove", "poisson") for a in (PLD(), RDP()))
    assert tight < renyi < by_moments
    assert tight == pytest.approx(3.8986, abs=2e-3)
