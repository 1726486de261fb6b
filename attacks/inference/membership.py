"""Was this record trained on? Scores from a released model, and what scores are worth."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from scipy import stats

from privbench.benchmarks.build import require

FEW = 64
"""Below so many shadow models one variance for all records is better (Carlini et al. 2022, Section VI-A)."""
TINY = 1e-30


def scaled(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Logit-scaled confidence ``log(p_y / (1 - p_y))``, ``(n,)`` (Carlini et al. 2022, Section IV-B).

    Args:
        logits: ``(n, classes)``.
        labels: ``(n,)`` int64.
    """
    rows = np.arange(len(labels))
    others = logits.astype(np.float64).copy()
    own = others[rows, labels].copy()
    others[rows, labels] = -np.inf
    most = others.max(1)
    return own - most - np.log(np.exp(others - most[:, None]).sum(1))


class MembershipAttack(Protocol):
    """Scores candidates, higher for members."""

    @property
    def name(self) -> str: ...

    @property
    def needs_shadows(self) -> bool: ...

    def score(self, target: np.ndarray, shadows: np.ndarray, member: np.ndarray) -> np.ndarray:
        """``(n,)``.

        Args:
            target: :func:`scaled` confidence of the attacked model, ``(n,)``.
            shadows: of each shadow model, ``(s, n)``.
            member: ``(s, n)`` bool, which candidates each shadow model was trained on.
        """
        ...


@dataclass(frozen=True)
class LossThreshold:
    """The loss alone (Yeom et al. 2018): confidence in the true label says member. The baseline of every attack."""

    name = "loss_threshold"
    needs_shadows = False

    def score(self, target: np.ndarray, shadows: np.ndarray, member: np.ndarray) -> np.ndarray:
        return target


@dataclass(frozen=True)
class LiRA:
    """Likelihood ratio of two Gaussians of each record's confidence, with it and without it (Carlini et al. 2022).

    ``online`` (Algorithm 1): log N(phi; in) - log N(phi; out). ``offline``: how far phi lies above those of models
    without the record, in standard deviations.

    Args:
        variant: of the attack.
        variance: ``global``, one for all records, or ``example``; ``None``: global below :data:`FEW` shadow models.
    """

    variant: Literal["online", "offline"] = "online"
    variance: Literal["global", "example"] | None = None
    needs_shadows = True

    @property
    def name(self) -> str:
        return f"lira_{self.variant}"

    def score(self, target: np.ndarray, shadows: np.ndarray, member: np.ndarray) -> np.ndarray:
        within = self.variance == "example" or (self.variance is None and len(shadows) >= FEW)
        mean_in, std_in = _moments(shadows, member, within)
        mean_out, std_out = _moments(shadows, ~member, within)
        if self.variant == "offline":
            return (target - mean_out) / std_out
        return stats.norm.logpdf(target, mean_in, std_in) - stats.norm.logpdf(target, mean_out, std_out)


def _moments(values: np.ndarray, where: np.ndarray, within: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each column over ``where``, and its standard deviation or that of all columns together."""
    count = where.sum(0)
    mean = np.where(where, values, 0).sum(0) / count
    square = np.where(where, (values - mean) ** 2, 0).sum(0)
    variance = square / np.maximum(count - 1, 1) if within else np.full(len(mean), square.sum() / (count - 1).sum())
    return mean, np.sqrt(np.maximum(variance, TINY))


def halves(candidates: int, shadows: int, rng: np.random.Generator) -> np.ndarray:
    """``(shadows, candidates)`` bool: which half each shadow model is trained on; two of them complement each other.

    Each candidate is in exactly half of the models.
    """
    require(shadows >= 4 and shadows % 2 == 0, "shadows", shadows, "even, at least 4")
    member = np.zeros((shadows, candidates), dtype=bool)
    for pair in range(0, shadows, 2):
        member[pair, rng.permutation(candidates)[: candidates // 2]] = True
        member[pair + 1] = ~member[pair]
    return member


@dataclass(frozen=True)
class ROC:
    """Rates at every threshold, both ascending from 0 to 1.

    Args:
        fpr, tpr: ``(t,)`` each.
    """

    fpr: np.ndarray
    tpr: np.ndarray

    @property
    def auc(self) -> float:
        return float(np.trapezoid(self.tpr, self.fpr))

    @property
    def advantage(self) -> float:
        """The largest TPR - FPR, over thresholds chosen in hindsight (Yeom et al. 2018, Definition 4)."""
        return float((self.tpr - self.fpr).max())

    def at(self, fpr: float) -> float:
        """The largest TPR at no more than so many false positives."""
        return float(self.tpr[self.fpr <= fpr].max())


def roc(scores: np.ndarray, members: np.ndarray) -> ROC:
    """Equal scores share a threshold.

    Args:
        scores: ``(n,)``.
        members: ``(n,)`` bool, some of both.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)
    true, false = np.cumsum(members[order])[last], np.cumsum(~members[order])[last]
    return ROC(np.append(0, false / (~members).sum()), np.append(0, true / members.sum()))


def of_guessing(members: int, others: int) -> float:
    """The :attr:`ROC.advantage` to be expected of scores that know nothing, for so many members and non-members.

    It isn't 0, since the threshold is chosen in hindsight: D sqrt(nm / (n + m)) exceeds x with a probability of
    exp(-2 x^2) (Smirnov's one-sided statistic of two samples, in the limit), whose mean is sqrt(pi / 8).
    """
    return math.sqrt(math.pi / 8 * (1 / members + 1 / others))


def bound(epsilon: float, delta: float, fpr: np.ndarray) -> np.ndarray:
    """The largest TPR that (epsilon, delta) allows (Kairouz, Oh and Viswanath 2015)."""
    up = np.exp(epsilon) * fpr + delta
    return np.minimum(np.minimum(up, 1 - np.exp(-epsilon) * (1 - delta - fpr)), 1.0)


def empirical_epsilon(scores: np.ndarray, members: np.ndarray, delta: float, confidence: float) -> float:
    """A lower bound on epsilon from rates, by Clopper-Pearson intervals (Nasr et al. 2021); 0 at least.

    The threshold, and which of the two errors is to be rare, are chosen on every other candidate and judged on the
    rest. Both rates share the confidence.
    """
    odd = np.zeros(len(scores), dtype=bool)
    for kind in (members, ~members):
        odd[np.nonzero(kind)[0][1::2]] = True
    best, chosen = -np.inf, (0.0, False)
    for flip in (False, True):
        s, m = (-scores, ~members) if flip else (scores, members)
        thresholds = np.unique(s[~odd])
        right, wrong = (_reaching(s[~odd & kind], thresholds) for kind in (m, ~m))
        found = _log_ratio(right, wrong, (m[~odd]).sum(), (~m[~odd]).sum(), delta, confidence)
        if found.max() > best:
            best, chosen = found.max(), (float(thresholds[found.argmax()]), flip)
    threshold, flip = chosen
    s, m = (-scores, ~members) if flip else (scores, members)
    right, wrong = (_reaching(s[odd & kind], np.array([threshold])) for kind in (m, ~m))
    return max(0.0, float(_log_ratio(right, wrong, m[odd].sum(), (~m[odd]).sum(), delta, confidence)[0]))


def _reaching(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How many scores are at or above each threshold."""
    return len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left")


def _log_ratio(
    right: np.ndarray, wrong: np.ndarray, members: int, others: int, delta: float, confidence: float
) -> np.ndarray:
    """``log((TPR - delta) / FPR)`` at the unfavourable ends of both intervals; far below 0 where TPR says nothing."""
    level = (1 - confidence) / 2
    low = np.where(right > 0, stats.beta.ppf(level, np.maximum(right, 1), members - right + 1), 0.0)
    high = np.where(wrong < others, stats.beta.ppf(1 - level, wrong + 1, np.maximum(others - wrong, 1)), 1.0)
    return np.log(np.maximum(low - delta, TINY)) - np.log(high)
