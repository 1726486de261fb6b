"""What an accountant is given: noisy steps, how units come into them, and what neighbours differ in."""

from collections.abc import Iterable
from typing import Literal

Step = tuple[float, float]
"""Sampling rate q in (0, 1] and noise multiplier sigma: noise standard deviation over the clip of the sum."""

History = tuple[tuple[Step, int], ...]
"""((q, sigma), times) pairs, sorted and without repetition: from :func:`summed`."""

Adjacency = Literal["add_remove", "zero_out", "replace"]
"""What neighbours differ in: a unit that is there or not, one that counts as zero, or one in place of another.

Clipped to C, the sums of the first two lie C apart, those of the third 2 C.
"""

Sampling = Literal["poisson", "fixed"]
"""Poisson: every unit comes in with probability q, by itself. Fixed: a cohort of the same size, without replacement.

With q = 1 both mean that all units take part in every step.
"""

Name = Literal["pld", "prv", "rdp"]


LEAST_NOISE, MOST_NOISE = 1e-6, 1e9
"""Noise multipliers but 0 in which accountants' arithmetic stays within its range."""

MOST_STEPS = 10**9
LARGEST_EPSILON = 1e6
"""That noise is calibrated to; at a hundredth of it nothing is hidden any more."""


class Uncovered(ValueError):
    """An accountant has no proof for what it is asked."""


def summed(history: Iterable[tuple[Step, int]]) -> History:
    """The same steps in any order and grouping give the same value."""
    total: dict[Step, int] = {}
    for step, count in history:
        total[step] = total.get(step, 0) + count
    return tuple(sorted((s, n) for s, n in total.items() if n))


def sampled(history: History) -> bool:
    """Whether a step leaves units out."""
    return any(rate < 1 for (rate, _), _ in history)


def noiseless(history: History) -> bool:
    """Whether a step touches data without noise, so that epsilon is infinite."""
    return any(sigma <= 0 for (_, sigma), _ in history)


def halved(history: History) -> History:
    """The noise over a sensitivity of 2 C: under replacement, where no step is sampled."""
    return tuple(((rate, sigma / 2), n) for (rate, sigma), n in history)


def check(history: Iterable[tuple[Step, float]], delta: float) -> None:
    """Refuse values that no accountant has a meaning for.

    Raises:
        ValueError: naming the field, the value and what would be right.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta = {delta!r}: in (0, 1)")
    for (rate, sigma), count in history:
        if not 0 < rate <= 1:
            raise ValueError(f"sampling_rate = {rate!r}: in (0, 1]")
        if not is_noise(sigma):
            raise ValueError(f"noise_multiplier = {sigma!r}: {NOISES}")
        if not 0 <= count <= MOST_STEPS or count != int(count):
            shown = f"{count:.3g}" if isinstance(count, float) else str(count)[:20]
            raise ValueError(f"steps = {shown}: a whole number from 0 to {MOST_STEPS}")


def checked(rows: Iterable[tuple[Step, float]], delta: float) -> History:
    """The history of rows that a user brings: each has a meaning by itself, so that none takes back another.

    Raises:
        ValueError: as :func:`check`, of a row or of the sum of those that are alike.
    """
    given = [(step, count) for step, count in rows]
    check(given, delta)
    history = summed((step, int(count)) for step, count in given)
    check(history, delta)
    return history


NOISES = f"0, or from {LEAST_NOISE:g} to {MOST_NOISE:g}"


def is_noise(multiplier: float) -> bool:
    """Whether accountants take it; :data:`NOISES` says what they take."""
    return multiplier == 0 or LEAST_NOISE <= multiplier <= MOST_NOISE
