"""The noise that meets a target epsilon, by the accountant that states it."""

import math
from collections.abc import Callable
from functools import lru_cache

from privbench.defenses.accounting.accountant import ACCOUNTANTS, Accountant, Terms
from privbench.defenses.accounting.gaussian import gaussian_mu


@lru_cache(maxsize=1024)
def noise_multiplier(target: float, delta: float, rate: float, steps: int, terms: Terms | None = None) -> float:
    """The least noise multiplier (to 0.1%) with which ``steps`` sampled steps satisfy (``target``, ``delta``).

    What is returned has been put through the accountant, so that the same one calibrates and states. It depends on
    the arguments alone, not on what was calibrated before.

    Args:
        terms: default: PLD, neighbours adding or removing one unit, Poisson sampling.

    Raises:
        ValueError: if no noise reaches the target, as for a delta near the accountant's own error (1e-15), or if the
            accountant has no proof for the terms.
    """
    terms = terms or Terms()
    accountant = ACCOUNTANTS[terms.accountant]

    def excess(by: Accountant) -> Callable[[float], float]:
        def at(log_sigma: float) -> float:
            history = (((rate, math.exp(log_sigma)), steps),)
            found = by.epsilon(history, delta, terms.adjacency, terms.sampling)
            return math.log(min(max(found, 1e-30), 1e30) / target)

        return at

    # The central limit of many steps (Bu et al. 2020) is no bound, but near. Then a grid that is cheap, then the real.
    mu, apart = gaussian_mu(target, delta), math.log(2) if terms.adjacency == "replace" else 0.0
    if rate < 1:
        # Capped, so that its square is a number, as it is for no rate that anything is ever drawn at.
        start = apart - 0.5 * math.log(math.log1p(min(mu / rate, 1e150) ** 2 / steps))
        start, slope = _root(excess(accountant.coarse()), start, -2.0, 1e-3)
    else:
        start, slope = apart + 0.5 * math.log(steps) - math.log(mu), -1.0
    return math.exp(_root(excess(accountant), start, slope, 1e-3)[0])


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
