"""Privacy loss distributions (dp-accounting; Doroshenko et al. 2022): composed on a grid that only errs upwards."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import logsumexp

from privbench.defenses.accounting.gaussian import gaussian_epsilon
from privbench.defenses.accounting.history import Adjacency, History, Sampling, Uncovered, halved, noiseless, sampled

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

_FINEST, _FIRST = 1e-4, 6.4e-3
_POINTS, _FEW = 2**19, 2**15
_MANY, _TAIL = 100_000, 1e-15
_LEAST_SIGMA = 0.007
"""Below, a step loses more than 1e4 nats with or without sampling."""


@dataclass(frozen=True)
class PLD:
    """The tightest of the three; histories without sampling are put into closed form.

    Args:
        interval: grid of the privacy loss; coarser is faster and never too small. It is coarsened where it would have
            more than about half a million points. ``None``: refined until the error is about 0.01%, or to 1e-4.
    """

    interval: float | None = None

    def epsilon(self, history: History, delta: float, adjacency: Adjacency, sampling: Sampling) -> float:
        if noiseless(history):
            return math.inf
        replace = adjacency == "replace"
        if sampling == "fixed" and sampled(history):
            raise Uncovered("pld has no dominating pair for cohorts of a fixed size: use accountant rdp")
        if not _needs_grid(history):
            return gaussian_epsilon(halved(history) if replace else history, delta)
        if self.interval is None:
            return _refined(history, delta, replace)[0]
        return _composed(history, delta, replace, max(self.interval, _span(history, replace) / _POINTS))

    def describe(self, history: History, delta: float, adjacency: Adjacency, sampling: Sampling) -> str:
        if not _needs_grid(history):
            ignored = ", amplification by sampling ignored" if sampled(history) else ""
            return f"analytic Gaussian mechanism (Balle and Wang 2018){ignored}"
        interval = self.interval or _refined(history, delta, adjacency == "replace")[1]
        return f"dp-accounting PLD, value_discretization_interval {interval:g}"

    def coarse(self) -> "PLD":
        """A cheap one, near enough for calibration's first steps."""
        return PLD(_FIRST)


def _needs_grid(history: History) -> bool:
    """Whether sampling is to be accounted for: not if every step loses so much that it would change next to nothing.

    A sampled Gaussian is dominated by the same without sampling (joint convexity), so leaving it out is sound.
    """
    return sampled(history) and all(sigma >= _LEAST_SIGMA for (_, sigma), _ in history)


@lru_cache(maxsize=4096)
def _refined(history: History, delta: float, replace: bool) -> tuple[float, float]:
    """Epsilon on the coarsest grid that is fine enough, and the grid's interval.

    The error of connecting the dots (Doroshenko et al. 2022) falls with the square of the interval.
    """
    interval = _FIRST
    points = _span(history, replace) / interval
    while points > _FEW:
        interval, points = 4 * interval, points / 4
    found = _composed(history, delta, replace, interval)
    while 4 * points <= _POINTS and interval > 1.01 * _FINEST:
        interval, points, before = interval / 4, 4 * points, found
        found = _composed(history, delta, replace, interval)
        if before - found <= 15 * 1e-4 * found:
            break
    return found, interval


@lru_cache(maxsize=4096)
def _span(history: History, replace: bool) -> float:
    """About how wide the grids of the privacy loss are, of a step and after composition, whichever is wider."""
    # A unit in place of another loses what removing the one and adding the other do.
    return (2 if replace else 1) * sum(_width(rate, sigma, count) for (rate, sigma), count in history)


def _width(rate: float, sigma: float, count: int) -> float:
    if rate == 1:
        return 20 * math.sqrt(count) / sigma  # dp-accounting composes these in closed form
    # dp-accounting cuts a step off at a mass of exp(-50), and the composition by a Chernoff bound of these orders.
    z = np.linspace(-10, 10, 1001)
    x = np.concatenate([z * sigma, z * sigma + 1])
    log_weights = np.concatenate([math.log1p(-rate) - z**2 / 2, math.log(rate) - z**2 / 2])
    loss = np.logaddexp(math.log1p(-rate), math.log(rate) + (x - 0.5) / sigma**2)
    log_weights -= logsumexp(log_weights)
    length = max(float(np.ptp(loss)), 1e-12)
    tail = math.log(2e15)
    ends = []
    for sign in (1, -1):
        orders = sign * np.arange(1, 21) / length
        moments = np.array([logsumexp(log_weights + t * loss) for t in orders])
        ends.append(float(np.min((count * moments + tail) / abs(orders))))
    return max(length, min(sum(ends), count * length))


@lru_cache(maxsize=4096)
def _composed(history: History, delta: float, replace: bool, interval: float) -> float:
    # dp-accounting takes a second to import; a run without privacy doesn't need it.
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism, identity

    relation = NeighboringRelation.REPLACE_ONE if replace else NeighboringRelation.ADD_OR_REMOVE_ONE
    total = identity(interval)
    for (rate, sigma), count in history:
        # Without sampling, many steps are one with less noise.
        noise, times = (sigma / math.sqrt(count), 1) if rate == 1 else (sigma, count)
        one = from_gaussian_mechanism(
            noise, value_discretization_interval=interval, sampling_prob=rate, neighboring_relation=relation
        )
        total = total.compose(_repeated(one, times))
    return float(total.get_epsilon_for_delta(delta))


def _repeated(one: "PrivacyLossDistribution", times: int) -> "PrivacyLossDistribution":
    """``one`` so many times: dp-accounting raises its number of points to that power, which takes minutes."""
    blocks, rest = divmod(times, _MANY)
    if not blocks:
        return one.self_compose(times)
    found = one.self_compose(_MANY, _TAIL / blocks).self_compose(blocks)
    return found.compose(one.self_compose(rest)) if rest else found
