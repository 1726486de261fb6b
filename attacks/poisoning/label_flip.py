"""Wrong labels on right inputs."""

from dataclasses import dataclass
from typing import Literal

import torch

from privbench.attacks.poisoning.poisoner import Holding, Poisoner
from privbench.benchmarks.build import require
from privbench.benchmarks.shares import at_least
from privbench.benchmarks.tasks.task import Split


@dataclass(frozen=True)
class LabelFlip(Poisoner):
    """All classes' labels flipped, to make the model worse (Fang et al. 2020, section 4).

    The flip of one class is a :class:`Backdoor` whose trigger is that class (``task/trigger=label_flip``).

    Args:
        clients: how many clients it owns.
        fraction: share of their records, in (0, 1].
        to: what class l of C becomes: ``opposite``: C - 1 - l (the middle of an odd number stays); ``next``: l + 1,
            the first after the last.
    """

    fraction: float = 1.0
    to: Literal["opposite", "next"] = "opposite"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.fraction <= 1, "fraction", self.fraction, "a share in (0, 1]")

    def poison(self, held: Holding, generator: torch.Generator) -> Split:
        records, classes = held.records, len(held.spec.classes)
        chosen = torch.randperm(len(records), generator=generator)[: at_least(self.fraction, len(records))]
        true = records.y[chosen]
        wrong = classes - 1 - true if self.to == "opposite" else (true + 1) % classes
        return records.put(chosen, held.relabel(records.take(chosen), wrong, generator))
