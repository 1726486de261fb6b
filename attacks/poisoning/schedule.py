"""When a poisoner attacks."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch

from privbench.benchmarks.build import require
from privbench.benchmarks.federation.randomness import stream


@dataclass(frozen=True)
class Schedule:
    """The rounds in which a poisoner attacks. In others its clients are honest, or stay away.

    One round is a single shot (``start`` and ``stop`` alike); ``every`` is the fixed frequency of Sun et al. 2019; a
    ``probability`` below 1 attacks at random. A late start attacks a model that has converged.

    Args:
        start: the first round that may be attacked, from 1.
        stop: the last; ``None`` for the run's last.
        every: of so many rounds from ``start`` the first is attacked.
        probability: with which each of these rounds is attacked, in (0, 1].
        invited: ``as_others``: its clients take part when they are drawn. ``when_attacking``: in every round that is
            attacked, and in no other, as the papers on backdoors have it; the cohort keeps its size.
        in_turn: its clients attack one at a time, the first in the first of these rounds and so on, and after the last
            the first again (the single shots of Xie et al. 2020); else all of them at once.
    """

    start: int = 1
    stop: int | None = None
    every: int = 1
    probability: float = 1.0
    invited: Literal["as_others", "when_attacking"] = "as_others"
    in_turn: bool = False

    def __post_init__(self) -> None:
        require(self.start >= 1, "start", self.start, "a round from 1")
        late = self.stop is None or self.stop >= self.start
        require(late, "stop", self.stop, f"a round from start={self.start}, or null")
        require(self.every >= 1, "every", self.every, "at least 1")
        require(0 < self.probability <= 1, "probability", self.probability, "in (0, 1]")

    def attackers(self, round: int, seed: int, owned: Collection[int]) -> tuple[int, ...]:
        """Which of the poisoner's clients attack in ``round``, in order."""
        if not owned or not self.attacks(round, seed):
            return ()
        order = tuple(sorted(owned))
        return (order[(round - self.start) // self.every % len(order)],) if self.in_turn else order

    def attacks(self, round: int, seed: int) -> bool:
        """Whether ``round`` is attacked in the run with ``seed``."""
        if round < self.start or (self.stop is not None and round > self.stop) or (round - self.start) % self.every:
            return False
        return self.probability == 1 or bool(torch.rand(1, generator=stream(seed, "attack", round)) < self.probability)
