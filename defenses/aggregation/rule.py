"""How updates become one: the interface of aggregation rules."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from privbench.benchmarks.federation.server import RoundContext
from privbench.benchmarks.federation.update import Update

if TYPE_CHECKING:
    from privbench.defenses.aggregation.sums import Sum


class Rule(Protocol):
    """An aggregation rule.

    Attributes:
        bounded: one client moves the sum by at most the plan's clip in L2; without this there is no epsilon.
    """

    @property
    def bounded(self) -> bool: ...

    def combine(self, updates: Iterable[Update], state: dict[str, Any], context: RoundContext) -> Update:
        """One update from the cohort's, which come in client order; sums stream, others hold the cohort.

        An empty cohort gives a zero update. The input is not changed.
        """
        ...


@runtime_checkable
class SumRule(Rule, Protocol):
    """A rule that needs no more than the weighted sum of the updates (secure aggregation shows no more)."""

    def of_sum(self, total: "Sum") -> Update:
        """What :meth:`combine` makes of the cohort that was summed."""
        ...


def empty(context: RoundContext) -> Update:
    """The update of a cohort without answers: zero."""
    return Update(torch.zeros(context.layout.size), context.layout, context.kind, 0)


def check_finite(update: Update, context: RoundContext) -> None:
    """Refuse a NaN or infinity before it enters a sum.

    Raises:
        Diverged: if the update holds one.
    """
    if not bool(torch.isfinite(update.vector).all()):
        raise Diverged(f"a client's update holds NaN or infinity in round {context.round}")


class Diverged(RuntimeError):
    """Training left the finite numbers: the run stops with status ``diverged``."""
