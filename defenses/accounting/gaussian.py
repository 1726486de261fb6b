"""The Gaussian mechanism in closed form (Balle and Wang 2018, Theorem 8)."""

import math

from scipy.special import erfcx, ndtr, ndtri

from privbench.defenses.accounting.history import History


def gaussian_epsilon(history: History, delta: float) -> float:
    """Epsilon of composed Gaussians, which are one with sensitivity over noise mu = sqrt(sum of times / sigma^2)."""
    mu = math.hypot(*(math.sqrt(count) / sigma for (_, sigma), count in history))
    if gaussian_delta(mu, -mu / 2) <= delta:
        return 0.0
    # delta(z) <= Phi(-z), which bounds z from above.
    low, high = -mu / 2, max(float(-ndtri(delta)), -mu / 2)
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if gaussian_delta(mu, middle) <= delta else (middle, high)
    return mu * (high + mu / 2)


def gaussian_delta(mu: float, z: float) -> float:
    """Delta of a Gaussian at epsilon = mu (z + mu / 2): Phi(-z) - exp(epsilon) Phi(-z - mu).

    exp(epsilon) Phi(-z - mu) = exp(-z^2/2) erfcx((z + mu)/sqrt 2) / 2, which doesn't overflow.
    """
    half_density, second = 0.5 * math.exp(-z * z / 2), float(erfcx((z + mu) / math.sqrt(2)))
    if z > 0:
        return half_density * (float(erfcx(z / math.sqrt(2))) - second)
    return float(ndtr(-z)) - half_density * second


def gaussian_mu(target: float, delta: float) -> float:
    """The largest mu with which a Gaussian satisfies (``target``, ``delta``)."""
    low, high = 1e-12, 1e12
    while high / low > 1 + 1e-9:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if gaussian_delta(middle, target / middle - middle / 2) <= delta else (low, middle)
    return low
