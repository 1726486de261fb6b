"""A trigger on the pictures of pairs, whose captions stay as they are."""

from dataclasses import dataclass

import torch
from torch import Tensor

from privbench.benchmarks.tasks.pairs import PairSpec, pack, pictures, unpack
from privbench.benchmarks.tasks.task import Spec, Split
from privbench.benchmarks.tasks.triggers.trigger import Trigger


@dataclass(frozen=True)
class OnPicture(Trigger):
    """What :class:`~privbench.benchmarks.tasks.contrastive.Contrastive` makes of its trigger.

    Args:
        trigger: of pictures; ``target`` is its own.
        pairs: of the task.
    """

    trigger: Trigger
    pairs: PairSpec

    @staticmethod
    def of(trigger: Trigger, pairs: PairSpec) -> "OnPicture":
        return OnPicture(trigger, pairs, target=trigger.target)

    def check(self, spec: Spec) -> None:
        self.trigger.check(self.pairs.picture)

    def apply(self, x: Tensor, spec: Spec, generator: torch.Generator | None = None) -> Tensor:
        several = x if x.dim() == 2 else x[None]
        shown, captions = unpack(several, self.pairs.picture.shape)
        marked = pack(self.trigger.apply(shown, self.pairs.picture, generator), captions)
        return marked if x.dim() == 2 else marked[0]

    def carriers(self, records: Split) -> Tensor:
        return self.trigger.carriers(pictures(records, self.pairs))

    def asked(self, test: Split) -> Tensor:
        return self.trigger.asked(pictures(test, self.pairs))

    def part(self, number: int) -> Trigger:
        return OnPicture.of(self.trigger.part(number), self.pairs)

    def share(self, spec: Spec) -> float:
        return self.trigger.share(self.pairs.picture)
