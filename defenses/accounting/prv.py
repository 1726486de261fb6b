"""Privacy random variables (Gopi et al. 2021), by Opacus: a second numerical composition, to check the first."""

import math
import warnings
from dataclasses import dataclass
from functools import lru_cache

from privbench.defenses.accounting.history import Adjacency, History, Sampling, Uncovered, halved, noiseless, sampled


@dataclass(frozen=True)
class PRV:
    """Opacus' accountant; its value is the upper end of its error, at most ``error`` above the truth.

    Args:
        error: of epsilon, > 0.
    """

    error: float = 0.01

    def epsilon(self, history: History, delta: float, adjacency: Adjacency, sampling: Sampling) -> float:
        return math.inf if noiseless(history) else _random(_covered(history, adjacency, sampling), delta, self.error)

    def describe(self, history: History, delta: float, adjacency: Adjacency, sampling: Sampling) -> str:
        return f"Opacus PRV, eps_error {self.error:g}"

    def coarse(self) -> "PRV":
        return self


def _covered(history: History, adjacency: Adjacency, sampling: Sampling) -> History:
    replace = adjacency == "replace"
    if not sampled(history):
        return halved(history) if replace else history
    if sampling == "fixed":
        raise Uncovered("prv covers Poisson sampling alone: use accountant rdp")
    if replace:
        raise Uncovered("prv bounds Poisson sampling for add_remove and zero_out: use accountant pld")
    return history


@lru_cache(maxsize=1024)
def _random(history: History, delta: float, error: float) -> float:
    from opacus.accountants import PRVAccountant

    if not history:
        return 0.0
    accountant = PRVAccountant()
    accountant.history = [(sigma, rate, count) for (rate, sigma), count in history]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of overflows, after which it answers infinity
        try:
            found = float(accountant.get_epsilon(delta, eps_error=error))
        except (RuntimeError, ValueError, OverflowError, MemoryError) as failed:
            raise Uncovered(f"prv failed on this history: {failed}") from None
    return max(0.0, found) if found == found else math.inf
