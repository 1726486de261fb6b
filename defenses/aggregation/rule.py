"""How updates become one: the interface of aggregation rules."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from privbench.benchmarks.federation.server import RoundContext
from privbench.benchmarks.federation.update import Update

if TYPE_CHECKING:
    from privbench.defenses.accounting.plan import Facts
    from privbench.defenses.aggregation.sums import Sum


class Rule(Protocol):
    """An aggregation rule.

    Attributes:
        bounded: one client moves the sum by at most the plan's clip in L2; without this there is no epsilon.
    """

    @property
    def bounded(self) -> bool: ...

    def check(self, facts: "Facts") -> None:
        """Refuse a federation that it can't decide in, before anything is trained.

        Args:
            facts: of the federation.

        Raises:
            ConfigError: naming what would be right.
        """
        ...

    def combine(self, updates: Iterable[Update], state: dict[str, Any], context: RoundContext) -> Update:
        """One update from the cohort's, which come in client order; sums stream, others hold the cohort.

        An empty cohort gives a zero update. The input is not changed. Extras of the result are released: ``screened``
        and ``kept`` are clients' numbers, int64; others are numbers.
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


class Diverged(RuntimeError):
    """Training left the finite numbers: the run stops with status ``diverged``."""
