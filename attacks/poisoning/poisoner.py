"""A poisoner owns its clients: their data, their updates and the training code that they run."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from privbench.attacks.poisoning.tampering import tampered
from privbench.benchmarks.build import require
from privbench.benchmarks.federation.settings import LocalWork
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
        """Whether its clients' training, update or claim is another than was agreed; data are their own to choose."""
        return False

    @property
    def forges(self) -> Literal["code", "message"] | None:
        """How it gets around its clients' attested guest: other ``code`` in it, or another ``message`` than it made.

        ``None`` leaves the guest and its message as they are; data and settings are what the guest is given.
        """
        return "code" if self.tampers else None

    def patches(self, share: float) -> dict[str, bytes]:
        """Files of the suite that its clients' guests run instead, by path below ``privbench/``.

        Args:
            share: as in :meth:`craft`.
        """
        return tampered(self, share) if self.forges == "code" else {}

    def work(self, agreed: LocalWork) -> LocalWork:
        """How its clients train, where ``agreed`` is asked of all."""
        return agreed

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
