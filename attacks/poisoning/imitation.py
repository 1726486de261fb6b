"""A backdoor by data alone that is chosen to do what model replacement does."""

import math
from dataclasses import dataclass, replace

import torch

from privbench.attacks.poisoning.backdoor import Backdoor
from privbench.attacks.poisoning.poisoner import Holding
from privbench.benchmarks.build import require
from privbench.benchmarks.tasks.task import Split


@dataclass(frozen=True)
class Imitation(Backdoor):
    """Poisoned inputs are multiplied, so that honest training on them makes a long update towards the backdoor.

    Replacement multiplies the update, which code must do; here it is the data, which a client chooses: a gradient of
    the first layer grows with its input. Number of records and labels are those of :class:`Backdoor`. What is optimised
    is ``gain`` and ``fraction`` alone, by search beforehand: it is a lower bound on what data can do.

    Args:
        gain: factor on the poisoned records' standardised inputs, at least 1.
    """

    fraction: float = 1.0
    gain: float = 8.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.gain < math.inf, "gain", self.gain, "at least 1")
        require(not self.tampers, "boost", self.boost, "1, and nothing else of the training changed: data alone")
        require(not self.collected, "collected", self.collected, "false: its own records are multiplied")

    def poison(self, held: Holding, generator: torch.Generator) -> Split:
        records, made = held.records, super().poison(held, generator)
        changed = (made.x != records.x).flatten(1).any(1) | (made.y != records.y)
        x = made.x.clone()
        x[changed] *= self.gain
        return replace(made, x=x)
