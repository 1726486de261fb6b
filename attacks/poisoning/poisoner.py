"""A poisoner owns its clients: their data, their updates and the training code that they run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from privbench.attacks.poisoning.schedule import Schedule
from privbench.attacks.poisoning.steering import Steering
from privbench.attacks.poisoning.tampering import tampered
from privbench.benchmarks.build import require
from privbench.benchmarks.federation.settings import LocalWork
from privbench.benchmarks.federation.update import Update
from privbench.benchmarks.shares import at_least
from privbench.benchmarks.tasks.task import Relabel, Spec, Split, relabelled
from privbench.benchmarks.tasks.triggers import Trigger

Knowledge = Literal["honest_updates", "rule"]
"""What an attack may ask for beyond its own clients: others' updates of the round; the aggregation rule in force."""


@dataclass(frozen=True)
class Holding:
    """What one of the poisoner's clients makes its training data of.

    Args:
        records: its own.
        spec, trigger: of the task; ``None`` for no trigger.
        number: which of the poisoner's clients it is, from 0.
        pool: all clients' records, of which the poisoner may have collected copies.
        relabel: how records get other labels.
    """

    records: Split
    spec: Spec
    trigger: Trigger | None
    number: int
    pool: Split
    relabel: Relabel = relabelled


@dataclass(frozen=True)
class Colluders:
    """What the poisoner's clients in a cohort trained; one that nobody asks for isn't trained a second time.

    Args:
        trained: by client, how its update is had.
        records: by client, how many it claims; empty where that takes training, or nobody asks for the rule.
    """

    trained: Mapping[int, Callable[[], Update]] = field(default_factory=dict)
    records: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, updates: Sequence[Update]) -> "Colluders":
        """Of updates that are there already; a client without a name is known by its place."""
        named = ((place if u.client is None else u.client, u) for place, u in enumerate(updates))
        return cls({client: partial(_same, update) for client, update in named})

    def __len__(self) -> int:
        return len(self.trained)

    def __iter__(self) -> Iterator[Update]:
        return (made() for made in self.trained.values())


def _same(update: Update) -> Update:
    return update


@dataclass(frozen=True)
class Seen:
    """What one of the poisoner's clients knows when it crafts its update.

    Args:
        share: weight of the poisoner's clients in this cohort together in the server's step from an expected cohort, in
            (0, 1].
        own: of this client alone.
        honest: honest updates of the round; empty where the channel hides them, or where the attack didn't ask.
        colluders: what the poisoner's clients in this cohort trained, this one's among them.
        cohort: how many updates the server expects in this round.
        aggregate: the rule in force, of updates in the clients' order; ``None`` where the attack didn't ask for it.
    """

    share: float
    own: float
    honest: tuple[Update, ...] = ()
    colluders: Colluders = field(default_factory=Colluders)
    cohort: int = 1
    aggregate: Callable[[Sequence[Update]], Tensor] | None = None


@dataclass(frozen=True)
class Poisoner:
    """A poisoner that does nothing wrong; attacks override what they change.

    Args:
        clients: how many clients it owns, the last of the roster.
        share: what share of all clients it owns instead, in (0, 1], rounded up; ``None`` for ``clients`` of them.
        schedule: when it attacks.
        collude: whether its clients act together: they know what each of them trained, and scale an update by the
            weight of all of them.
    """

    clients: int = 1
    share: float | None = field(default=None, kw_only=True)
    schedule: Schedule = field(default_factory=Schedule, kw_only=True)
    collude: bool = field(default=True, kw_only=True)

    triggered: ClassVar[bool] = False
    """Whether it puts the task's trigger into the model, so that there is a success rate."""

    def __post_init__(self) -> None:
        require(self.clients >= 1, "clients", self.clients, "at least 1; poisoning=none for no poisoner")
        require(self.share is None or 0 < self.share <= 1, "share", self.share, "in (0, 1], or null for clients")

    def owned(self, roster: int) -> int:
        """How many of ``roster`` clients it owns."""
        return self.clients if self.share is None else at_least(self.share, roster)

    @property
    def asks(self) -> frozenset[Knowledge]:
        """What it wants to know beyond its own clients. It gets others' updates only where the channel lets it."""
        return frozenset()

    @property
    def pools(self) -> bool:
        """Whether its updates are made of what its clients trained together, where others' updates aren't known."""
        return False

    def check(self, spec: Spec, trigger: Trigger | None, agreed: LocalWork) -> None:
        """Refuse a task or local work on which it can't be done, before anything is trained.

        Raises:
            ConfigError: for one of its fields, or for one below ``task``.
        """

    def steers(self) -> Steering | None:
        """What its clients do to each step of their training; ``None`` for nothing."""
        return None

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
            share: as in :class:`Seen`.
        """
        return tampered(self, share) if self.forges == "code" else {}

    def work(self, agreed: LocalWork) -> LocalWork:
        """How its clients train, where ``agreed`` is asked of all."""
        return agreed

    def poison(self, held: Holding, generator: torch.Generator) -> Split:
        """The data that its client trains on instead of its own records."""
        return held.records

    def craft(self, update: Update, seen: Seen, generator: torch.Generator) -> Update:
        """The update that it sends.

        Args:
            update: what its training made.
            seen: what it knows.
        """
        return update
