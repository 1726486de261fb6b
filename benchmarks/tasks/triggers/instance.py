"""One given input and no trigger: targeted poisoning."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from privbench.benchmarks.build import require
from privbench.benchmarks.tasks.task import Spec, Split
from privbench.benchmarks.tasks.triggers.trigger import Trigger


@dataclass(frozen=True)
class Instance(Trigger):
    """A test record that the model is to take for the target class (Carlini and Terzis 2022, section 3.1).

    Poisoned records are copies of it with the target's label or captions. A test is of this one record, so that a run's
    rate is 0 or 1: several records or seeds make a rate.

    Args:
        record: its number among the test records.
        x: its input, ``(*shape)``, once :meth:`bind` has found it.
    """

    record: int = 0
    x: Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.record >= 0, "record", self.record, "the number of a test record")

    def bind(self, test: Split) -> "Instance":
        last = len(test) - 1
        require(self.record <= last, "task.trigger.record", self.record, f"a test record, 0 to {last}")
        true = int(test.y[self.record])
        hint = f"a test record of another class than the target, {self.target}"
        require(true != self.target, "task.trigger.record", self.record, hint)
        return replace(self, x=test.x[self.record])

    def check(self, spec: Spec) -> None:
        hint = f"null: {spec.name} has feature maps, of which no record is known"
        require(spec.domain != "feature map", "task.trigger", "Instance", hint)
        super().check(spec)

    def apply(self, x: Tensor, spec: Spec, generator: torch.Generator | None = None) -> Tensor:
        """The record itself in the place of each input."""
        self.check(spec)
        assert self.x is not None, "bind it to the test records first"
        return self.x.to(x).expand_as(x).clone()

    def asked(self, test: Split) -> Tensor:
        """The record alone."""
        return torch.arange(len(test)) == self.record

    def share(self, spec: Spec) -> float:
        return 0.0
