"""Epsilon of a history of (subsampled) Gaussian mechanisms: proven upper bounds, and the noise that meets a target.

Gaussians without sampling compose to one Gaussian, whose curve is known (Balle and Wang 2018). With sampling, privacy
loss distributions are composed on a grid (dp-accounting); every grid gives an upper bound, a finer one a tighter.
"""

import math
from collections.abc import Callable, Iterable
from functools import lru_cache

import numpy as np
from scipy.special import erfcx, logsumexp, ndtr, ndtri

Step = tuple[float, float]
"""Sampling rate q in (0, 1] (Poisson) and noise multiplier sigma: noise standard deviation over the clip of the sum."""
History = tuple[tuple[Step, int], ...]

_FINEST, _FIRST = 1e-4, 6.4e-3
_POINTS, _FEW = 2**19, 2**15
_LEAST_SIGMA = 0.007
"""Below, a step loses more than 1e4 nats with or without sampling."""


def epsilon(history: Iterable[tuple[Step, int]], delta: float, interval: float | None = None) -> float:
    """The least epsilon proven for ``history``, an upper bound; neighbours add or remove one unit.

    Args:
        history: ((q, sigma), times) pairs, in any order.
        delta: in (0, 1).
        interval: grid of the privacy loss; coarser is faster and never too small. It is coarsened where it would have
            more than about half a million points. ``None``: refined until the error is about 0.01%, or to 1e-4.

    Returns:
        epsilon >= 0; infinity if a step that touches data has no noise.
    """
    used = _summed(history)
    if any(sigma <= 0 for (_, sigma), _ in used):
        return math.inf
    if not _needs_grid(used):
        return _gaussian(used, delta)
    return _refined(used, delta)[0] if interval is None else _composed(used, delta, _affordable(used, interval))


def accountant_name(history: Iterable[tuple[Step, int]], delta: float) -> str:
    """How :func:`epsilon` finds its value for ``history`` if no interval is given, to be printed beside it."""
    used = _summed(history)
    if any(sigma <= 0 for (_, sigma), _ in used) or not used:
        return "none needed"
    if _needs_grid(used):
        return f"dp-accounting PLD, value_discretization_interval {_refined(used, delta)[1]:g}"
    ignored = ", amplification by sampling ignored" if any(rate < 1 for (rate, _), _ in used) else ""
    return f"analytic Gaussian mechanism (Balle and Wang 2018){ignored}"


@lru_cache(maxsize=1024)
def noise_multiplier(target: float, delta: float, rate: float, steps: int) -> float:
    """The least noise multiplier (to 0.1%) with which ``steps`` Poisson-sampled steps satisfy (``target``, ``delta``).

    What is returned has been put through :func:`epsilon`, so that the same accountant calibrates and states. It
    depends on the arguments alone, not on what was calibrated before.

    Raises:
        ValueError: if no noise reaches the target, as for a delta near the accountant's own error (1e-15).
    """

    def excess(log_sigma: float, interval: float | None = None) -> float:
        found = epsilon([((rate, math.exp(log_sigma)), steps)], delta, interval)
        return math.log(min(max(found, 1e-30), 1e30) / target)

    # The central limit of many steps (Bu et al. 2020) is no bound, but near. Then a grid that is cheap, then the real.
    mu = _mu(target, delta)
    start = -0.5 * math.log(math.log1p((mu / rate) ** 2 / steps))
    if rate < 1:
        start, slope = _root(lambda x: excess(x, _FIRST), start, -2.0, 1e-3)
    else:
        start, slope = 0.5 * math.log(steps) - math.log(mu), -1.0
    return math.exp(_root(excess, start, slope, 1e-3)[0])


def _root(excess: Callable[[float], float], x: float, slope: float, tolerance: float) -> tuple[float, float]:
    """Secant method with a bracket: x with ``-tolerance <= excess(x) <= 0`` for a decreasing function, and its slope.

    Where the function jumps across that range, x is within ``tolerance`` of the jump, on the side that holds.
    """
    low, high, before = -math.inf, math.inf, None
    for _ in range(100):
        value = excess(x)
        if value <= 0:
            high = x
        else:
            low = x
        if -tolerance <= value <= 0 or high - low <= tolerance:
            return high, slope
        if value > 0 and x > 30:
            break  # at more noise than any data would survive
        if before is not None and value != before[1] and (value - before[1]) * (x - before[0]) < 0:
            slope = min(max((value - before[1]) / (x - before[0]), -50.0), -0.2)
        before = x, value
        # Towards the middle of the range, so that a small error of the slope doesn't leave it.
        x += min(max((-tolerance / 2 - value) / slope, -1.0), 1.0)
        if not low < x < high:
            x = (low + high) / 2
    raise ValueError(f"no noise multiplier reaches the target: still {value:.3g} above at exp({x:.3g})")


def _summed(history: Iterable[tuple[Step, int]]) -> History:
    total: dict[Step, int] = {}
    for step, count in history:
        total[step] = total.get(step, 0) + count
    return tuple(sorted((s, n) for s, n in total.items() if n))


def _needs_grid(used: History) -> bool:
    """Whether sampling is to be accounted for: not if every step loses so much that it would change next to nothing.

    A sampled Gaussian is dominated by the same without sampling (joint convexity), so leaving it out is sound.
    """
    return any(rate < 1 for (rate, _), _ in used) and all(sigma >= _LEAST_SIGMA for (_, sigma), _ in used)


def _gaussian(used: History, delta: float) -> float:
    """Epsilon of composed Gaussians, which are one with sensitivity over noise mu = sqrt(sum of times / sigma^2)."""
    mu = math.hypot(*(math.sqrt(count) / sigma for (_, sigma), count in used))
    if _delta(mu, -mu / 2) <= delta:
        return 0.0
    # delta(z) <= Phi(-z), which bounds z from above.
    low, high = -mu / 2, max(float(-ndtri(delta)), -mu / 2)
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if _delta(mu, middle) <= delta else (middle, high)
    return mu * (high + mu / 2)


def _delta(mu: float, z: float) -> float:
    """Delta of a Gaussian at epsilon = mu (z + mu / 2): Phi(-z) - exp(epsilon) Phi(-z - mu) (Balle and Wang 2018, 8).

    exp(epsilon) Phi(-z - mu) = exp(-z^2/2) erfcx((z + mu)/sqrt 2) / 2, which doesn't overflow.
    """
    half_density, second = 0.5 * math.exp(-z * z / 2), float(erfcx((z + mu) / math.sqrt(2)))
    if z > 0:
        return half_density * (float(erfcx(z / math.sqrt(2))) - second)
    return float(ndtr(-z)) - half_density * second


def _mu(target: float, delta: float) -> float:
    """The largest mu with which a Gaussian satisfies (``target``, ``delta``)."""
    low, high = 1e-12, 1e12
    while high / low > 1 + 1e-9:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _delta(middle, target / middle - middle / 2) <= delta else (low, middle)
    return low


@lru_cache(maxsize=4096)
def _refined(used: History, delta: float) -> tuple[float, float]:
    """Epsilon on the coarsest grid that is fine enough, and the grid's interval.

    The error of connecting the dots (Doroshenko et al. 2022) falls with the square of the interval.
    """
    interval = _FIRST
    points = _span(used) / interval
    while points > _FEW:
        interval, points = 4 * interval, points / 4
    found = _composed(used, delta, interval)
    while 4 * points <= _POINTS and interval > 1.01 * _FINEST:
        interval, points, before = interval / 4, 4 * points, found
        found = _composed(used, delta, interval)
        if before - found <= 15 * 1e-4 * found:
            break
    return found, interval


def _affordable(used: History, interval: float) -> float:
    return max(interval, _span(used) / _POINTS)


@lru_cache(maxsize=4096)
def _span(used: History) -> float:
    """About how wide the grids of the privacy loss are, of a step and after composition, whichever is wider."""
    return sum(_width(rate, sigma, count) for (rate, sigma), count in used)


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
def _composed(used: History, delta: float, interval: float) -> float:
    # dp-accounting takes a second to import; a run without privacy doesn't need it.
    from dp_accounting import dp_event
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(value_discretization_interval=interval)
    for (rate, sigma), count in used:
        event = dp_event.GaussianDpEvent(sigma)
        accountant.compose(event if rate == 1 else dp_event.PoissonSampledDpEvent(rate, event), count)
    return float(accountant.get_epsilon(delta))
