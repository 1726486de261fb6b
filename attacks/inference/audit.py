"""Auditing in one training run (Steinke, Nasr and Jagielski 2023): from guesses of coins to a lower bound on epsilon.

m canaries are each in the training or not, by a fair coin of its own. Who has seen what training released guesses some
of the coins and abstains from the others. An (epsilon, delta) mechanism bounds how many guesses can be right.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

STEP = 1e-6
"""How near the lower bound is found."""


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Probability of at least so many right guesses under (epsilon, delta), an upper bound (Theorem 5.2, Appendix D).

    Under pure DP right guesses are dominated by Binomial(guesses, e^epsilon / (1 + e^epsilon)), whoever guesses and
    whichever coins. Delta adds 2 m delta max_i P[v - i <= B < v] / i.

    Args:
        canaries: m.
        guesses: r, those that aren't abstentions.
        correct: v, in [0, guesses].
        epsilon: >= 0; infinity gives 1.
        delta: in [0, 1].

    Returns:
        A value in [0, 1].
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"{correct} right of {guesses} guesses of {canaries} canaries")
    right = 1 / (1 + math.exp(-epsilon))
    beta = float(stats.binom.sf(correct - 1, guesses, right))
    if delta == 0 or correct == 0:
        return min(1.0, beta)
    below = np.cumsum(stats.binom.pmf(np.arange(correct - 1, -1, -1), guesses, right))
    alpha = max(0.0, float((below / np.arange(1, correct + 1)).max()))
    return min(1.0, beta + 2 * canaries * delta * alpha)


def lower_bound(canaries: int, guesses: int, correct: int, delta: float, confidence: float) -> float:
    """The least epsilon that isn't refuted: below it :func:`p_value` is less than ``1 - confidence``; 0 at least.

    Args:
        confidence: in (0, 1). Of several audits of one training, each takes ``1 - (1 - confidence) / number``.
    """
    level = 1 - confidence
    low, high = 0.0, 1.0
    if p_value(canaries, guesses, correct, low, delta) >= level:
        return 0.0
    while p_value(canaries, guesses, correct, high, delta) < level:
        low, high = high, 2 * high
    while high - low > STEP:
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(canaries, guesses, correct, middle, delta) < level else (low, middle)
    return low


def guess(scores: np.ndarray, guesses: int) -> np.ndarray:
    """Guesses of coins, ``(m,)``: 1 for the highest half of so many scores, -1 for the lowest, 0 (abstain) between.

    Args:
        scores: ``(m,)``; higher means more likely in the training.
        guesses: even, at most m.
    """
    order = np.argsort(scores, kind="stable")
    guessed = np.zeros(len(scores), dtype=np.int64)
    guessed[order[: guesses // 2]] = -1
    guessed[order[len(scores) - guesses // 2 :]] = 1
    return guessed


@dataclass(frozen=True)
class Finding:
    """What one audit found.

    Args:
        epsilon: the lower bound.
        canaries, guesses, correct: m, r and v.
        confidence: of the bound.
    """

    epsilon: float
    canaries: int
    guesses: int
    correct: int
    confidence: float


def audit(scores: np.ndarray, included: np.ndarray, guesses: int, delta: float, confidence: float) -> Finding:
    """Guess by scores, then look at the coins.

    Args:
        scores: ``(m,)``, from what was released alone.
        included: ``(m,)`` bool, the coins.
        guesses, delta, confidence: as above.
    """
    guessed = guess(scores, guesses)
    correct = int(((guessed == 1) & included).sum() + ((guessed == -1) & ~included).sum())
    made = int((guessed != 0).sum())
    bound = lower_bound(len(scores), made, correct, delta, confidence)
    return Finding(bound, len(scores), made, correct, confidence)
