"""What a client does to protect itself before anything is sent. The base class does nothing."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from privbench.benchmarks.federation.settings import LocalWork
from privbench.benchmarks.federation.update import Update
from privbench.benchmarks.federation.view import Known

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

    def check(self, model: nn.Module) -> None:
        """Refuse a model that this mechanism can't train.

        Raises:
            ConfigError: naming what would be right.
        """

    def known(self, source: str, client: int) -> Known:
        """What is published of it without a privacy plan: of an ``update``, the ``aggregate``, the ``release``."""
        return Known()

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model as training will call it; done once a process."""
        return model

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
        self, trainer: "Trainer", x: Tensor, y: Tensor, client: int, plan: "Plan | None", generator: torch.Generator
    ) -> None:
        """Leave the gradient of one batch in ``trainer.gradient``."""
        trainer.gradient.zero_()
        if len(y):
            trainer.loss(trainer.model, (x, y)).backward()
        canaries = trainer.drawn
        if canaries is not None and canaries.number:
            # Nothing clips them: the clip is taken for 1.
            trainer.gradient.mul_(len(y))
            trainer.add(canaries.direction * canaries.length)
            trainer.gradient.div_(len(y) + canaries.number)

    def send(self, update: Update, client: int, plan: "Plan | None", generator: torch.Generator) -> Update:
        """The update as it leaves the client."""
        return update
