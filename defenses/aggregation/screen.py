"""What no rule may be asked to take in: updates that aren't finite, or whose norm is absurd."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from privbench.benchmarks.federation.server import RoundContext
from privbench.benchmarks.federation.update import Update
from privbench.defenses.aggregation.rule import Diverged

ABSURD = 1e4
"""A norm is absurd beyond this, if it is also beyond this many times the cohort's median norm. A model replaced by one
client in a thousand is as long as a thousand updates, and passes."""


@dataclass
class Screen:
    """For rules that take updates one by one, and can't know their median norm: who isn't finite is left out.

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
        """The clients that were left out, int64."""
        return torch.tensor(self.screened, dtype=torch.int64)

    def passed(self, updates: Iterable[Update]) -> Iterator[tuple[Update, float]]:
        """Finite updates and their norms.

        Raises:
            Diverged: if there were updates, and none was finite.
        """
        for update in updates:
            norm = float(torch.linalg.vector_norm(update.vector, dtype=torch.float64))
            if math.isfinite(norm):
                yield update, norm
            else:
                self.screened.append(self.seen if update.client is None else update.client)
            self.seen += 1
        if self.seen and len(self.screened) == self.seen:
            raise Diverged(f"no client's update is finite in round {self.context.round}")


def sound(lengths: Tensor) -> Tensor:
    """Which of the norms (n,) are finite and not absurd (:data:`ABSURD`), ``(n,)`` bool."""
    finite = lengths[torch.isfinite(lengths)]
    usual = float(finite.median()) if len(finite) else 0.0
    # Where most clients have next to nothing to change, their norm is no measure of the others'.
    return torch.isfinite(lengths) & (lengths <= ABSURD * max(1.0, usual))
