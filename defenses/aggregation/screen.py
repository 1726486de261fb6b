"""What no rule may be asked to take in: updates that aren't finite, or whose norm is absurd."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from privbench.benchmarks.federation.server import RoundContext
from privbench.benchmarks.federation.update import Update, length
from privbench.defenses.aggregation.rule import Diverged

ABSURD = 1e4
"""A norm is absurd beyond this, if it is also beyond this many times the cohort's median norm. A model replaced by one
client in a thousand is as long as a thousand updates, and passes."""


@dataclass
class Screen:
    """For rules that take updates one by one: who isn't finite, or is absurdly long, is left out.

    An update beyond :data:`ABSURD` waits until the cohort's median norm is known; others pass at once. Under a privacy
    plan only what isn't finite is left out: whether a client counts may not depend on other clients' norms.

    Args:
        context: of the round.
        seen: updates that came in.
        screened: clients that were left out.
    """

    context: RoundContext
    seen: int = 0
    screened: list[int] = field(default_factory=list)

    @property
    def names(self) -> Tensor:
        """The clients that were left out, int64, in order."""
        return torch.tensor(sorted(self.screened), dtype=torch.int64)

    def passed(self, updates: Iterable[Update]) -> Iterator[tuple[Update, float]]:
        """Sound updates and their norms, long ones last.

        Raises:
            Diverged: if there were updates, and none was finite. Not under a client-level guarantee, where that would
                be an output of its own: the sum is zero, and noised and counted like any other.
        """
        lengths: list[float] = []
        waiting: list[tuple[int, Update, float]] = []
        for update in updates:
            norm = length(update.vector)
            client = self.seen if update.client is None else update.client
            self.seen += 1
            if not math.isfinite(norm):
                self.screened.append(client)
                continue
            lengths.append(norm)
            if norm > ABSURD and self.context.plan is None:
                waiting.append((client, update, norm))
            else:
                yield update, norm
        plan = self.context.plan
        if self.seen and not lengths and (plan is None or plan.unit != "client"):
            raise Diverged(f"no client's update is finite in round {self.context.round}")
        if waiting:
            usual = float(torch.tensor(lengths, dtype=torch.float64).median())
            for client, update, norm in waiting:
                if norm <= longest(usual):
                    yield update, norm
                else:
                    self.screened.append(client)


def longest(usual: float) -> float:
    """The largest norm that isn't absurd beside the cohort's median norm."""
    # Where most clients have next to nothing to change, their norm is no measure of the others'.
    return ABSURD * max(1.0, usual)


def sound(lengths: Tensor) -> Tensor:
    """Which of the norms (n,) are finite and not absurd (:data:`ABSURD`), ``(n,)`` bool."""
    finite = lengths[torch.isfinite(lengths)]
    usual = float(finite.median()) if len(finite) else 0.0
    return torch.isfinite(lengths) & (lengths <= longest(usual))
