"""What a client does to protect itself before anything is sent. The base class does nothing."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from privbench.benchmarks.federation.settings import LocalWork
from privbench.benchmarks.federation.update import Update
from privbench.benchmarks.federation.view import Known
from privbench.defenses.local.per_sample.engine import Loss, Units

if TYPE_CHECKING:
    from privbench.benchmarks.federation.trainer import Trainer
    from privbench.defenses.accounting.plan import Plan


@dataclass(frozen=True)
class Local:
    """No protection: shuffled batches, plain gradients, the update as it is. Mechanisms override what they change.

    Attributes:
        private: it clips and noises records, as a record-level plan counts on.
        noised: it clips and noises the whole update, as a client-level plan with noise by clients counts on.
        heuristic: it changes what is sent without any guarantee.
        discrete: and that on a grid, so that a sum of messages that lie on it has a proof.
    """

    private = False
    noised = False
    heuristic = False

    @property
    def discrete(self) -> bool:
        return False

    @property
    def chosen(self) -> str | None:
        """The way of computing clipped gradients one by one, if it does that."""
        return None

    def check(self, model: nn.Module) -> None:
        """Refuse a model that this mechanism can't train.

        Raises:
            ConfigError: naming what would be right.
        """

    def known(self, source: str, client: int) -> Known:
        """What is published of it without a privacy plan: of an ``update``, the ``aggregate``, the ``release``."""
        return Known()

    def settle(self, chosen: str | None, model: nn.Module, loss: Loss, batch: Units) -> "Local":
        """The same with all that is chosen by a measurement on this machine.

        Args:
            chosen: what a run began with, which is resumed.
            model: left as it is.
            loss: of a batch.
            batch: one like those of training.
        """
        return self

    def prepare(self, model: nn.Module, loss: Loss) -> Any:
        """What :meth:`gradient` needs for this model; made once a process, kept as ``trainer.prepared``."""

    def batches(self, records: int, work: LocalWork, generator: torch.Generator) -> Iterator[Tensor]:
        """Indices of each local step's batch."""
        batch, left = work.batch(records), work.local_steps(records)
        while left > 0:
            order = torch.randperm(records, generator=generator)
            yield from order.split(batch)[:left]
            left -= min(left, math.ceil(records / batch))

    def visited(self, records: int, work: LocalWork) -> int:
        """How many different ones of a client's ``records`` its local steps draw, or are expected to; at least 1."""
        return min(records, work.batch(records) * work.local_steps(records))

    def gradient(
        self, trainer: "Trainer", parts: list[Units], client: int, plan: "Plan | None", generator: torch.Generator
    ) -> None:
        """Leave the gradient of one batch in ``trainer.gradient``.

        Args:
            trainer: whose model is trained.
            parts: the batch, divided by how many records a unit has; one part where units are records.
            client: who trains, for its own noise multiplier.
            plan: the privacy plan, if any.
            generator: for noise.
        """
        trainer.gradient.zero_()
        (units,) = parts
        if len(units):
            trainer.loss(trainer.model, (units.x, units.y)).backward()
        canaries = trainer.drawn
        if canaries is not None and canaries.number:
            # Nothing clips them: the clip is taken for 1.
            trainer.gradient.mul_(len(units))
            trainer.add(canaries.direction * canaries.length)
            trainer.gradient.div_(len(units) + canaries.number)

    def send(self, update: Update, client: int, plan: "Plan | None", generator: torch.Generator) -> Update:
        """The update as it leaves the client."""
        return update
