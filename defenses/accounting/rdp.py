"""Renyi differential privacy (Mironov 2017; dp-accounting): looser, fast, and the only proof for fixed cohorts."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from privbench.defenses.accounting.history import Adjacency, History, Sampling, Uncovered, halved, noiseless, sampled

_ORDERS = tuple(1 + x / 10 for x in range(1, 100)) + tuple(range(11, 64)) + tuple(2**k for k in range(6, 11))
# The libraries' own orders end here or below, where a small epsilon is ten times too large. A sampled step takes time
# in proportion to its order.
_SAMPLED, _UNSAMPLED = tuple(2**k for k in range(11, 14)), tuple(2**k for k in range(11, 24))
_SOURCE = 2**40
_MOST_POINTS = 10**6


@dataclass(frozen=True)
class RDP:
    """Moments of the privacy loss, turned into (epsilon, delta) by Canonne et al. 2020."""

    def epsilon(self, history: History, delta: float, adjacency: Adjacency, sampling: Sampling) -> float:
        return math.inf if noiseless(history) else _renyi(*_covered(history, adjacency, sampling), delta)[0]

    def describe(self, history: History, delta: float, adjacency: Adjacency, sampling: Sampling) -> str:
        order = _renyi(*_covered(history, adjacency, sampling), delta)[1]
        return f"dp-accounting RDP, order {order:g}"

    def coarse(self) -> "RDP":
        return self


def _covered(history: History, adjacency: Adjacency, sampling: Sampling) -> tuple[History, bool]:
    """The history over a sensitivity of 1, and whether cohorts are of a fixed size.

    Raises:
        Uncovered: if there is no bound.
    """
    replace = adjacency == "replace"
    if not sampled(history):
        return halved(history) if replace else history, False
    if sampling == "fixed":
        if not replace:
            raise Uncovered("fixed-size sampling is proven for adjacency replace alone (Wang et al. 2019)")
        # dp-accounting takes the noise over the sensitivity, which is 2 C here.
        return halved(history), True
    if replace:
        raise Uncovered("rdp bounds Poisson sampling for add_remove and zero_out: use accountant pld")
    return history, False


@lru_cache(maxsize=4096)
def _renyi(history: History, fixed: bool, delta: float) -> tuple[float, float]:
    """Epsilon and the order that gave it."""
    found = _of_orders(_ORDERS, history, fixed, delta)
    if found[1] < _ORDERS[-1]:
        return found
    return min(found, _of_orders(_SAMPLED if sampled(history) else _UNSAMPLED, history, fixed, delta))


def _of_orders(orders: tuple[float, ...], history: History, fixed: bool, delta: float) -> tuple[float, float]:
    from dp_accounting import NeighboringRelation, dp_event
    from dp_accounting.rdp import RdpAccountant, compute_epsilon

    relation = NeighboringRelation.REPLACE_ONE if fixed else NeighboringRelation.ADD_OR_REMOVE_ONE
    accountant = RdpAccountant(orders, relation)
    with _quiet():
        for (rate, sigma), count in history:
            event = dp_event.GaussianDpEvent(sigma)
            if rate < 1 and fixed:
                event = dp_event.SampledWithoutReplacementDpEvent(_SOURCE, math.ceil(rate * _SOURCE), event)
            elif rate < 1:
                event = dp_event.PoissonSampledDpEvent(rate, event)
            accountant.compose(event, count)
    moments = list(accountant.rdp)
    for place, order in enumerate(orders):
        # The library's series for a fraction doesn't converge where much is sampled, and it leaves the order out.
        if math.isinf(moments[place]) and order % 1 and not fixed:
            moments[place] = sum(count * _gaussian(rate, sigma, order) for (rate, sigma), count in history)
    epsilon, order = compute_epsilon(orders, moments, delta)
    return float(epsilon), float(order)


def _gaussian(rate: float, sigma: float, order: float) -> float:
    """Renyi divergence of one Poisson-sampled step from one without the unit (Mironov et al. 2019, theorem 5).

    By the trapezoid rule, whose error is far below float64's on a grid that is fine against ``pi sigma^2``, which is
    how far the integrand's nearest singularity lies from the real axis. Infinite where that takes too many points.
    """
    if rate == 1:
        return order / (2 * sigma**2)
    step, reach = min(sigma, sigma**2) / 4, 40 * sigma
    if (order + 2 * reach) / step > _MOST_POINTS:
        return math.inf
    x = np.arange(-reach, order + reach, step)
    without, with_ = -(x**2) / (2 * sigma**2), -((x - 1) ** 2) / (2 * sigma**2)
    mixed = np.logaddexp(math.log1p(-rate) + without, math.log(rate) + with_)
    logs = order * mixed + (1 - order) * without
    most = float(logs.max())
    total = float(np.exp(logs - most).sum()) * step / (sigma * math.sqrt(2 * math.pi))
    return max(0.0, (most + math.log(total)) / (order - 1))


@contextmanager
def _quiet() -> Iterator[None]:
    """No warning for each order that the library leaves out: the least epsilon of the others is still a bound."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
