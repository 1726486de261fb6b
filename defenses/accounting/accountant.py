"""Epsilon of a history of (subsampled) Gaussian mechanisms, by privacy loss distributions (dp-accounting)."""

import math
from collections.abc import Callable, Iterable
from functools import lru_cache

Step = tuple[float, float]
"""Sampling rate q in (0, 1] (Poisson) and noise multiplier sigma: noise standard deviation over the clip of the sum."""

_COARSE, _FINE = 1e-3, 1e-4


@lru_cache(maxsize=4096)
def _composed(history: tuple[tuple[Step, int], ...], delta: float, interval: float) -> float:
    # dp-accounting takes a second to import; a run without privacy doesn't need it.
    from dp_accounting import dp_event
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(value_discretization_interval=interval)
    for (rate, sigma), count in history:
        event = dp_event.GaussianDpEvent(sigma)
        accountant.compose(event if rate == 1 else dp_event.PoissonSampledDpEvent(rate, event), count)
    return float(accountant.get_epsilon(delta))


def epsilon(history: Iterable[tuple[Step, int]], delta: float, interval: float = _FINE) -> float:
    """The least epsilon proven for ``history``, an upper bound; neighbours add or remove one unit.

    Args:
        history: ((q, sigma), times) pairs, in any order.
        delta: in (0, 1).
        interval: grid of the privacy loss; coarser is faster and never too small.

    Returns:
        epsilon >= 0; infinity if a step that touches data has no noise.
    """
    total: dict[Step, int] = {}
    for step, count in history:
        total[step] = total.get(step, 0) + count
    used = tuple(sorted((s, n) for s, n in total.items() if n))
    if not used:
        return 0.0
    if any(sigma <= 0 for (_, sigma), _ in used):
        return math.inf
    return _composed(used, delta, interval)


@lru_cache(maxsize=1024)
def noise_multiplier(target: float, delta: float, rate: float, steps: int) -> float:
    """The least noise multiplier (to 0.1%) with which ``steps`` Poisson-sampled steps satisfy (``target``, ``delta``).

    Found by bisection on :func:`epsilon`, so that the same accountant calibrates and states.
    """

    def holds(sigma: float, interval: float) -> bool:
        return epsilon([((rate, sigma), steps)], delta, interval) <= target

    # From above: far below the answer the privacy loss is large, and its grid long and slow.
    coarse = max(_COARSE, 1e-4 * target)
    high = max(1.0, 4 * rate * math.sqrt(steps) / target)
    while not holds(high, coarse):
        high *= 2
    while high > 0.05 and holds(high / 2, coarse):
        high /= 2
    high = _bisect(lambda sigma: holds(sigma, coarse), high / 2, high)
    if epsilon([((rate, high), steps)], delta) > 0.99 * target:
        return high
    # The coarse grid asks for too much (four times and more) where each of many steps loses little.
    low = high * 0.8
    while low > 0.05 and holds(low, _FINE):
        low, high = low * 0.8, low
    return _bisect(lambda sigma: holds(sigma, _FINE), low, high)


def _bisect(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The least value between ``low``, which fails, and ``high``, which holds, that holds (to 0.1%)."""
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
