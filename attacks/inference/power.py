"""What an audit could find: its power against a stated bug, before any training, from public numbers alone."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from privbench.attacks.inference.audit import lower_bound, p_value

SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of canaries that are guessed, of which the one with most power is taken."""
TRIALS = 200
HALF = 0.5
"""The stated bug: so much of the noise that was claimed."""
Claimed = tuple[float, float, int]
"""A sampling rate, a noise multiplier, and how many steps had these."""


@dataclass(frozen=True)
class Power:
    """How well an audit can tell a mechanism with a bug from the one that is claimed.

    Args:
        guesses: how many coins are best guessed.
        power: the probability that the bug is found with them, in [0, 1].
    """

    guesses: int
    power: float


def power(
    canaries: int,
    history: Iterable[Claimed],
    epsilon: float,
    delta: float,
    confidence: float,
    guesses: int | None = None,
    noise: float = HALF,
    trials: int = TRIALS,
) -> Power:
    """Simulate white-box canaries on orthogonal directions: each one's score is its part of the noised sums.

    An included canary adds 1 (the clip) to every step that samples it, noise is ``noise`` times the claimed one. Real
    data move scores too, and an adversary may see less than the claim allows it, so this is the best case.

    Args:
        canaries: m.
        history: the claim's steps.
        epsilon, delta: that are claimed.
        confidence: of each audit, corrected for their number.
        guesses: fixed beforehand; ``None`` chooses the best of :data:`SHARES`.
    """
    steps = [(float(q), float(s), int(n)) for q, s, n in history]
    std = noise * np.sqrt(sum(n * s * s for _, s, n in steps))
    choices = sorted({2 * max(1, round(share * canaries / 2)) for share in SHARES}) if guesses is None else [guesses]
    choices = [min(c, canaries - canaries % 2) for c in choices]
    needed = {c: _least(canaries, c, epsilon, delta, confidence) for c in choices}
    right: dict[int, list[int]] = {c: [] for c in choices}
    rng = np.random.default_rng(0)
    for _ in range(trials):
        coins = rng.random(canaries) < 0.5
        signal = sum(rng.binomial(n, q, canaries) if q < 1 else np.full(canaries, n) for q, _, n in steps)
        order = np.argsort(coins * signal + rng.normal(0, std, canaries))
        low, high = np.cumsum(~coins[order]), np.cumsum(coins[order][::-1])
        for c in choices:
            right[c].append(int(low[c // 2 - 1] + high[c // 2 - 1]))
    found = {c: sum(r >= needed[c] for r in right[c]) / trials for c in choices}
    # Where none finds anything, the number that bounds epsilon best.
    bounds = {c: lower_bound(canaries, c, int(np.median(right[c])), delta, confidence) for c in choices}
    best = max(choices, key=lambda c: (found[c], bounds[c]))
    return Power(best, found[best])


def _least(canaries: int, guesses: int, epsilon: float, delta: float, confidence: float) -> int:
    """The least number of right guesses that refutes the claim; one more than there are if none does."""
    low, high = 0, guesses + 1
    while low < high:
        middle = (low + high) // 2
        if p_value(canaries, guesses, middle, epsilon, delta) < 1 - confidence:
            high = middle
        else:
            low = middle + 1
    return low
