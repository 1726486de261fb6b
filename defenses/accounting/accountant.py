"""Epsilon of a history of Gaussian mechanisms behind one interface, whichever accountant finds it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from privbench.defenses.accounting.history import (
    Adjacency,
    History,
    Name,
    Sampling,
    Step,
    Uncovered,
    checked,
    noiseless,
    summed,
)
from privbench.defenses.accounting.pld import PLD
from privbench.defenses.accounting.prv import PRV
from privbench.defenses.accounting.rdp import RDP
from privbench.defenses.accounting.wording import NO_ACCOUNTANT


class Accountant(Protocol):
    """Proven upper bounds."""

    def epsilon(self, history: History, delta: float, adjacency: Adjacency, sampling: Sampling) -> float:
        """Epsilon >= 0, an upper bound; infinity if a step has no noise.

        Raises:
            Uncovered: if it has no proof for this adjacency or sampling.
        """
        ...

    def describe(self, history: History, delta: float, adjacency: Adjacency, sampling: Sampling) -> str:
        """Library, method and parameters behind :meth:`epsilon`."""
        ...

    def coarse(self) -> "Accountant":
        """A faster one whose value is near, for the first steps of calibration."""
        ...


ACCOUNTANTS: dict[Name, Accountant] = {"pld": PLD(), "prv": PRV(), "rdp": RDP()}


@dataclass(frozen=True)
class Terms:
    """What an epsilon is of.

    Args:
        accountant: that finds it.
        adjacency: what neighbours differ in.
        sampling: how units are drawn.
    """

    accountant: Name = "pld"
    adjacency: Adjacency = "add_remove"
    sampling: Sampling = "poisson"

    def epsilon(self, history: Iterable[tuple[Step, int]], delta: float) -> float:
        """The least epsilon proven for ``history`` at ``delta`` in (0, 1), an upper bound.

        Args:
            history: ((q, sigma), times) pairs, in any order.

        Raises:
            Uncovered: if the accountant has no proof for these terms.
        """
        return ACCOUNTANTS[self.accountant].epsilon(summed(history), delta, self.adjacency, self.sampling)

    def describe(self, history: Iterable[tuple[Step, int]], delta: float) -> str:
        """How :meth:`epsilon` finds its value, to be printed beside it."""
        used = summed(history)
        if noiseless(used) or not used:
            return NO_ACCOUNTANT
        return ACCOUNTANTS[self.accountant].describe(used, delta, self.adjacency, self.sampling)

    def renyi(self, history: Iterable[tuple[Step, int]], delta: float) -> float | None:
        """The same by Renyi differential privacy, as a second opinion; ``None`` where that has no proof."""
        try:
            return Terms("rdp", self.adjacency, self.sampling).epsilon(history, delta)
        except Uncovered:
            return None


@dataclass(frozen=True)
class Answer:
    """What ``privbench epsilon`` says.

    Args:
        epsilon: by the accountant that was asked.
        rdp_epsilon: by Renyi differential privacy; ``None`` where that has no proof.
        delta, terms, history: what it is of.
        accountant: library, method and parameters.
    """

    epsilon: float
    rdp_epsilon: float | None
    delta: float
    terms: Terms
    history: History
    accountant: str


def answer(history: Iterable[tuple[Step, float]], delta: float, terms: Terms) -> Answer:
    """Epsilon of a history that a user brings.

    Raises:
        ValueError: for a value without a meaning, or terms without a proof (:class:`Uncovered`).
    """
    used = checked(history, delta)
    value = terms.epsilon(used, delta)
    return Answer(value, terms.renyi(used, delta), delta, terms, used, terms.describe(used, delta))


def epsilon(history: Iterable[tuple[Step, int]], delta: float) -> float:
    """By privacy loss distributions, neighbours adding or removing one unit, Poisson sampling."""
    return Terms().epsilon(history, delta)


def accountant_name(history: Iterable[tuple[Step, int]], delta: float) -> str:
    """How :func:`epsilon` finds its value for ``history``."""
    return Terms().describe(history, delta)


def round_up(value: float, digits: int = 4) -> float:
    """The least number of so many decimals that isn't below ``value``."""
    return math.ceil(value * 10**digits) / 10**digits
