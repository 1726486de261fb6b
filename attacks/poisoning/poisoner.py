"""A poisoner owns its clients: their data, their updates and the training code that they run."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from privbench.benchmarks.build import require
from privbench.benchmarks.federation.update import Update
from privbench.benchmarks.tasks.task import Spec, Split
from privbench.benchmarks.tasks.trigger import Patch


@dataclass(frozen=True)
class Poisoner:
    """A poisoner that does nothing wrong; attacks override what they change.

    Args:
        clients: how many clients it owns, the last of the roster.
    """

    clients: int = 1
    wants_others: ClassVar[bool] = False
    """Whether it asks for the honest updates of its round; it gets them only where the channel lets it."""

    def __post_init__(self) -> None:
        require(self.clients >= 1, "clients", self.clients, "at least 1; poisoning=none for no poisoner")

    @property
    def tampers(self) -> bool:
        """Whether its clients run other code than they were given: attested clients would be refused."""
        return False

    def poison(self, records: Split, spec: Spec, trigger: Patch | None, generator: torch.Generator) -> Split:
        """The data that its client trains on instead of ``records``."""
        return records

    def craft(self, update: Update, others: tuple[Update, ...], share: float, generator: torch.Generator) -> Update:
        """The update that it sends.

        Args:
            update: what its training made.
            others: honest updates of the round, empty where the channel hides them.
            share: weight of the poisoner's clients together in the server's step from an expected cohort, in (0, 1].
        """
        return update
