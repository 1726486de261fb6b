"""A value out of range in a table: a lab value that no patient has."""

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from privbench.benchmarks.build import require
from privbench.benchmarks.tasks.task import Spec
from privbench.benchmarks.tasks.triggers.trigger import Trigger


@dataclass(frozen=True)
class OutOfRange(Trigger):
    """One feature of a record is set to a value.

    Args:
        feature: its name or number.
        deviations: how many standard deviations of the training records above their mean it is set to; below, where
            negative.
    """

    feature: str | int = 0
    deviations: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(isfinite(self.deviations), "deviations", self.deviations, "a finite number")

    def check(self, spec: Spec) -> None:
        table = spec.domain == "table"
        require(table, "task.trigger", "OutOfRange", f"null: {spec.name} has {spec.domain}s, which have no features")
        if isinstance(self.feature, str):
            known, hint = self.feature in spec.features, f"a feature of {spec.name}: {', '.join(spec.features)}"
        else:
            known, hint = 0 <= self.feature < spec.shape[0], f"a feature of {spec.name}, 0 to {spec.shape[0] - 1}"
        require(known, "task.trigger.feature", self.feature, hint)
        super().check(spec)

    def apply(self, x: Tensor, spec: Spec, generator: torch.Generator | None = None) -> Tensor:
        self.check(spec)
        place = spec.features.index(self.feature) if isinstance(self.feature, str) else self.feature
        changed = x.clone()
        # Inputs are standardised with the training records' mean and deviation.
        changed[..., place] = self.deviations
        return changed

    def share(self, spec: Spec) -> float:
        return 1 / spec.shape[0]
