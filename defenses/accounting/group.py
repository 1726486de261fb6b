"""What a client-level guarantee is worth against several clients together (group privacy)."""

import math
from collections.abc import Iterable
from functools import lru_cache

from scipy.stats import binom

from privbench.defenses.accounting.accountant import Terms
from privbench.defenses.accounting.gaussian import gaussian_epsilon
from privbench.defenses.accounting.history import History, Step, Uncovered, checked, noiseless, sampled
from privbench.defenses.accounting.plan import ClientPlan

_POINTS = 2**15


def group_epsilon(history: Iterable[tuple[Step, float]], delta: float, members: int) -> float:
    """Epsilon at ``delta`` of data sets that differ in ``members`` units, each there or not.

    Who is drawn moves the sum by C each, all the same way at worst: of a Gaussian with Poisson sampling, a binomial
    number of them. That mixture dominates (Schuchardt et al. 2024, "Unified mechanism-specific amplification by
    subsampling and group privacy amplification"); its privacy loss distribution is composed on a grid that only errs
    upwards. Without sampling the noise is that of one unit over ``members``.

    Args:
        history: ``((q, sigma), times)`` of Gaussian steps with Poisson sampling.
        delta: in (0, 1).
        members: of the group, at least 1.

    Raises:
        ValueError: for a value out of its range.
    """
    steps = checked(history, delta)
    if members < 1 or members != int(members):
        raise ValueError(f"members = {members!r}: a whole number from 1")
    if noiseless(steps):
        return math.inf
    if not sampled(steps):
        return gaussian_epsilon(tuple(((1.0, sigma / members), n) for (_, sigma), n in steps), delta)
    return _mixture(steps, delta, members)


@lru_cache(maxsize=256)
def _mixture(history: History, delta: float, members: int) -> float:
    # dp-accounting takes a second to import; a run without privacy doesn't need it.
    from dp_accounting.pld.privacy_loss_distribution import from_mixture_gaussian_mechanism

    sigmas = [sigma / members for (_, sigma), _ in history]
    # A step's loss is at most about 1 / (2 sigma^2) + 10 / sigma; the grid has so many points over all steps at most.
    widest = max(1 / (2 * s * s) + 10 / s for s in sigmas)
    interval = max(1e-4, widest * math.sqrt(sum(n for _, n in history)) / _POINTS)
    total = None
    for (rate, sigma), count in history:
        counts = range(members + 1)
        chances = [float(binom.pmf(k, members, rate)) for k in counts]
        one = from_mixture_gaussian_mechanism(
            sigma, [float(k) for k in counts], chances, value_discretization_interval=interval
        )
        composed = one.self_compose(count)
        total = composed if total is None else total.compose(composed)
    assert total is not None
    return float(total.get_epsilon_for_delta(delta))


def group_statement(plan: ClientPlan, ledger: list[dict[str, float]], members: int, always: bool) -> float:
    """Epsilon against a model's recipient for ``members`` clients together.

    Args:
        plan: of the run.
        ledger: its charges.
        members: how many clients.
        always: whether they take part whenever they like, so that sampling hides nothing of them.

    Raises:
        Uncovered: where there is no proof: cohorts of a fixed size, one client in place of another, correlated noise.
    """
    if plan.guarantee.adjacency == "replace":
        raise Uncovered("a group of clients in place of others: use defense.privacy.adjacency=add_remove")
    if plan.matrix is not None:
        raise Uncovered("a group under noise that is correlated over rounds")
    steps = [(e.get("sampling_rate", 1.0), e["noise_multiplier"]) for e in ledger]
    if plan.grid is not None:
        # Of a sum of discrete Gaussians only the Renyi divergence is known; with so many times the sensitivity it is at
        # most that with so much less noise (each term of Kairouz et al. 2021, theorem 1, grows by the square or less).
        history = [((1.0, sigma / members), 1) for _, sigma in steps]
        return Terms("rdp", "zero_out").epsilon(history, plan.guarantee.delta)
    if plan.facts.sampling == "fixed" and any(rate < 1 for rate, _ in steps) and not always:
        raise Uncovered("a group in cohorts of a fixed size: use federation.sampling=poisson")
    return group_epsilon(
        [((1.0 if always else rate, sigma), 1) for rate, sigma in steps], plan.guarantee.delta, members
    )
