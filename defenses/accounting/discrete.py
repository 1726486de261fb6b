"""What a sum of discrete Gaussians guarantees (Kairouz, Liu and Steinke 2021, "The distributed discrete Gaussian
mechanism for federated learning with secure aggregation").

A discrete Gaussian has the concentrated privacy of a continuous one with the same parameter (Canonne, Kamath and
Steinke 2020, theorem 4). A sum of n of them is no discrete Gaussian, but near to one: n draws of parameter s on each
of d coordinates of integers, for a vector of length L, are (1/2) e^2-concentrated with

    e = L / (sqrt(n) s) + t sqrt(d),    t = 10 sum_{k=1}^{n-1} exp(-2 pi^2 s^2 k / (k + 1))        (their theorem 1)

for s of at least 1/2. That is the Renyi divergence of a continuous Gaussian of multiplier 1 / e, at every order.
"""

import math
from dataclasses import dataclass

from privbench.benchmarks.build import ConfigError


@dataclass(frozen=True)
class Grid:
    """Where clients' noisy updates lie.

    Args:
        step: they are multiples of it.
        size: d.
    """

    step: float
    size: int

    def __str__(self) -> str:
        return f"discrete on multiples of {self.step:.6g} (Kairouz et al. 2021, theorem 1)"

    def bound(self, clip: float) -> float:
        """The length to which a client clips, so that it is within ``clip`` after each coordinate was rounded to the
        nearest multiple: rounding moves it by at most ``step sqrt(d) / 2``.

        Raises:
            ConfigError: if too little is left for a vector: a tenth of the clip or more goes to rounding.
        """
        lost = self.step * math.sqrt(self.size) / 2
        if lost > clip / 10:
            hint = f"more bits, or a smaller range: rounding {self.size} coordinates to {self.step:.3g} moves them by"
            raise ConfigError("defense.channel.bits", f"a step of {self.step:.3g}", f"{hint} {lost:.3g}, clip {clip:g}")
        return clip - lost

    def multiplier(self, sum_multiplier: float, clip: float, shares: int) -> float:
        """The noise multiplier of the continuous Gaussian whose Renyi divergence bounds the sum's.

        Args:
            sum_multiplier: of the sum of all ``shares``, over ``clip``.

        Raises:
            ConfigError: if the noise is too small for its grid to have a proof.
        """
        if not sum_multiplier:
            return 0.0
        each = sum_multiplier * clip / math.sqrt(shares) / self.step
        if each < 0.5:
            hint = f"more bits: the noise of one client is {each:.3g} steps, a proof needs half of one"
            raise ConfigError("defense.channel.bits", f"a step of {self.step:.3g}", hint)
        far = 10 * sum(math.exp(-2 * math.pi**2 * each**2 * k / (k + 1)) for k in range(1, shares))
        return 1 / (1 / sum_multiplier + far * math.sqrt(self.size))
