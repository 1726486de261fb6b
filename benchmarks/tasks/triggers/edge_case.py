"""Inputs that are a trigger by themselves: semantic and edge-case backdoors, and the label flip of one class."""

from dataclasses import dataclass

import torch
from torch import Tensor

from privbench.benchmarks.build import require
from privbench.benchmarks.shares import at_least
from privbench.benchmarks.tasks.task import Spec, Split
from privbench.benchmarks.tasks.triggers.trigger import Trigger


@dataclass(frozen=True)
class EdgeCase(Trigger):
    """The least typical records of one class (Wang et al. 2020): those farthest from the mean of that class.

    Nothing is changed in an input. With a share of 1 it is the whole class: a backdoor of it is the targeted flip of
    that class's label (Tolpegin et al. 2020).

    Args:
        source: the true class of the records.
        rarest: their share of the class, in (0, 1].
    """

    source: int = 1
    rarest: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.source >= 0, "source", self.source, "the number of a class")
        require(self.source != self.target, "source", self.source, f"another class than the target, {self.target}")
        require(0 < self.rarest <= 1, "rarest", self.rarest, "a share in (0, 1]")

    def check(self, spec: Spec) -> None:
        last = len(spec.classes) - 1
        require(self.source <= last, "task.trigger.source", self.source, f"a class of {spec.name}, 0 to {last}")
        super().check(spec)

    def apply(self, x: Tensor, spec: Spec, generator: torch.Generator | None = None) -> Tensor:
        self.check(spec)
        return x.clone()

    def carriers(self, records: Split) -> Tensor:
        """The rarest of the source class among ``records``; equally far ones by their place."""
        found = torch.zeros(len(records), dtype=torch.bool)
        own = torch.nonzero(records.y == self.source).squeeze(1)
        if len(own):
            x = records.x[own].flatten(1).double()
            far = (x - x.mean(dim=0)).norm(dim=1).argsort(descending=True, stable=True)
            found[own[far[: at_least(self.rarest, len(own))]]] = True
        return found

    def share(self, spec: Spec) -> float:
        return 0.0
