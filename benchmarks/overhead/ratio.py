"""How much longer: the ratio of two arms' times, with a bootstrap interval clustered by boot.

Repeats of one boot share its memory layout, its page placement and its processor's state, so they aren't independent
measurements of an arm; boots are. A boot counts as one number, the median of its repeats; an arm is the geometric mean
of its boots, and a ratio is that of two arms. The interval is the studentised bootstrap on the log-ratio (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993, section 12.5) with whole boots drawn. Percentiles of the
bootstrapped ratios themselves would be simpler, and cover too little with the few boots that anybody takes
(:mod:`~.calibration` shows both).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST_BOOTS = 3
"""Boots an arm, below which no interval is stated: of two boots, half the draws have no spread at all."""

WIDEST = 1e6
"""Intervals end at this ratio and its inverse: a few boots that differ much tell nothing at all."""

Boots = Mapping[str, Sequence[float]]
"""Times of one workload under one arm: for each boot (or other cluster) those of its repeats, in any one unit."""


@dataclass(frozen=True)
class Ratio:
    """One ratio.

    Args:
        value: other over base; above 1 is slower.
        low, high: of the interval, at most a factor of :data:`WIDEST`; ``None`` with too few boots.
        level: of the interval.
        base, other: the arms' times, in the unit they were given.
        boots: of base and other.
        repeats: of base and other, all boots together.
    """

    value: float
    low: float | None
    high: float | None
    level: float
    base: float
    other: float
    boots: tuple[int, int]
    repeats: tuple[int, int]

    @property
    def found(self) -> bool:
        """Whether the interval leaves 1: there is a difference, as far as one interval can tell."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high

    @property
    def width(self) -> float | None:
        """Half of the interval, relative to its middle: 0.02 is ±2%."""
        return None if self.low is None or self.high is None else (self.high / self.low) ** 0.5 - 1

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies in the interval; False without one."""
        return self.low is not None and self.high is not None and self.low <= value <= self.high


def ratio(base: Boots, other: Boots, level: float = 0.95, draws: int = 4000, seed: int = 0) -> Ratio:
    """The ratio of two arms.

    Args:
        base, other: times by boot; each boot has at least one, all above 0.
        level: of the interval.
        draws: bootstrap draws.
        seed: of the draws.
    """
    a, b = logs(base), logs(other)
    distance = float(b.mean() - a.mean())
    low = high = None
    if min(len(a), len(b)) >= LEAST_BOOTS:
        interval = studentised(a, b, level, draws, np.random.default_rng(seed))
        low, high = (float(np.exp(np.clip(x, -np.log(WIDEST), np.log(WIDEST)))) for x in interval)
    return Ratio(
        value=float(np.exp(distance)),
        low=low,
        high=high,
        level=level,
        base=float(np.exp(a.mean())),
        other=float(np.exp(b.mean())),
        boots=(len(a), len(b)),
        repeats=(sum(map(len, base.values())), sum(map(len, other.values()))),
    )


def logs(boots: Boots) -> NDArray[np.float64]:
    """Logarithm of each boot's median, in the boots' order."""
    return np.log([np.median(times) for times in boots.values()])


def studentised(
    a: NDArray[np.float64], b: NDArray[np.float64], level: float, draws: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Interval of ``mean(b) - mean(a)``: whole entries are drawn, and the distance is measured in standard errors."""
    distance, error = b.mean() - a.mean(), _error(a, b)
    drawn_a, drawn_b = a[rng.integers(len(a), size=(draws, len(a)))], b[rng.integers(len(b), size=(draws, len(b)))]
    errors = _error(drawn_a, drawn_b)
    # A draw of one boot alone has no spread and measures nothing.
    spread = errors > 1e-9 * max(float(error), 1e-300)
    if error == 0 or not spread.any():
        return float(distance), float(distance)
    t = ((drawn_b.mean(-1) - drawn_a.mean(-1) - distance)[spread]) / errors[spread]
    low, high = np.quantile(t, [(1 - level) / 2, (1 + level) / 2])
    return float(distance - high * error), float(distance - low * error)


def percentile(
    a: NDArray[np.float64], b: NDArray[np.float64], level: float, draws: int, rng: np.random.Generator
) -> tuple[float, float]:
    """The plain percentile interval of ``mean(b) - mean(a)``: only for :mod:`~.calibration` to compare with."""
    drawn_a, drawn_b = a[rng.integers(len(a), size=(draws, len(a)))], b[rng.integers(len(b), size=(draws, len(b)))]
    low, high = np.quantile(drawn_b.mean(-1) - drawn_a.mean(-1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _error(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Welch's standard error of the distance of two means, over the last axis."""
    return np.sqrt(a.var(-1, ddof=1) / a.shape[-1] + b.var(-1, ddof=1) / b.shape[-1])
