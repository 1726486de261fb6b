"""Epsilon of several units together, against definitions and the accountant of one."""

import math

import pytest
from scipy import integrate
from scipy.stats import binom, norm

from privbench.defenses.accounting import ClientLevel, Facts
from privbench.defenses.accounting.accountant import epsilon, round_up
from privbench.defenses.accounting.discrete import Grid
from privbench.defenses.accounting.gaussian import gaussian_epsilon
from privbench.defenses.accounting.group import group_epsilon, group_statement

DELTA = 1e-3


@pytest.mark.parametrize(("rate", "sigma", "steps"), [(0.5, 2.0, 10), (0.1, 1.0, 30), (1.0, 3.0, 5)])
def test_a_group_of_one_is_one(rate, sigma, steps):
    history = [((rate, sigma), steps)]
    assert group_epsilon(history, DELTA, 1) == pytest.approx(epsilon(history, DELTA), rel=5e-3)


@pytest.mark.parametrize("members", [2, 5])
def test_without_sampling_it_is_a_gaussian_of_so_many_times_the_sensitivity(members):
    found = group_epsilon([((1.0, 4.0), 3)], DELTA, members)
    assert found == pytest.approx(gaussian_epsilon((((1.0, 4.0 / members), 3),), DELTA))


@pytest.mark.parametrize(("rate", "sigma", "members"), [(0.3, 2.0, 3), (0.05, 1.0, 4)])
def test_of_one_step_it_is_the_divergence_of_the_mixture(rate, sigma, members):
    """E_eps of sum_k Binom(k) N(k, s^2) from N(0, s^2), and the other way, integrated numerically."""
    found = group_epsilon([((rate, sigma), 1)], DELTA, members)
    chances = binom.pmf(range(members + 1), members, rate)

    def mixed(x):
        return sum(p * norm.pdf(x, k, sigma) for k, p in enumerate(chances))

    def divergence(p, q, e):
        grid = (-12 * sigma, members + 12 * sigma)
        return integrate.quad(lambda x: max(0.0, p(x) - math.exp(e) * q(x)), *grid, limit=2000, epsabs=1e-10)[0]

    def alone(x):
        return norm.pdf(x, 0, sigma)

    worst = max(divergence(mixed, alone, found), divergence(alone, mixed, found))
    assert worst <= DELTA * 1.001, "sound"
    lower = max(divergence(mixed, alone, 0.98 * found), divergence(alone, mixed, 0.98 * found))
    assert lower > DELTA, "and tight"


def test_it_grows_with_the_group_and_is_infinite_without_noise():
    found = [group_epsilon([((0.2, 1.5), 20)], DELTA, k) for k in (1, 2, 4)]
    assert found == sorted(found)
    assert found[1] > 1.5 * found[0]
    assert group_epsilon([((0.2, 0.0), 1)], DELTA, 2) == math.inf


@pytest.mark.parametrize(("delta", "members"), [(0.0, 1), (DELTA, 0), (DELTA, 1.5)])
def test_values_out_of_range_are_refused(delta, members):
    with pytest.raises(ValueError, match=r"delta|members"):
        group_epsilon([((0.5, 1.0), 1)], delta, members)


def test_of_discrete_noise_it_has_the_proof_that_its_claims_have():
    level = ClientLevel(delta=DELTA, clip=0.5, noise_multiplier=2.0, noise="distributed", accountant="rdp")
    facts = Facts(8, 5, 1.0, "fixed", (9,) * 8, (3,) * 8, (1,) * 8, operator_reads_updates=False)
    plan = level.bind(facts).on(Grid(2.0**-12, 1000))
    ledger = [plan.charge(n, range(8)) for n in range(1, 6)]
    one, two = (group_statement(plan, ledger, members, always=True) for members in (1, 2))
    assert round_up(one) == plan.statements(ledger)[0]["epsilon"]
    assert two > 2 * one


def test_no_step_takes_back_another():
    with pytest.raises(ValueError, match="steps = -9"):
        group_epsilon([((0.5, 1.0), 10), ((0.5, 1.0), -9)], DELTA, 2)
    assert group_epsilon([((0.5, 1.0), 10.0)], DELTA, 2) == group_epsilon([((0.5, 1.0), 10)], DELTA, 2)
