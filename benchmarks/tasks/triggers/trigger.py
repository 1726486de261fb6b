"""The interface of triggers: what makes a backdoored model answer with the target class."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from privbench.benchmarks.build import require
from privbench.benchmarks.tasks.task import Spec, Split


@dataclass(frozen=True)
class Trigger:
    """A change of the inputs, or a property that some inputs have by themselves.

    Args:
        target: the class that the backdoor asks for.
    """

    target: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        require(self.target >= 0, "target", self.target, "the number of a class")

    def check(self, spec: Spec) -> None:
        """Refuse inputs that can't carry it, and a target that is no class.

        Raises:
            ConfigError: for a field below ``task.trigger``.
        """
        last = len(spec.classes) - 1
        require(self.target <= last, "task.trigger.target", self.target, f"a class of {spec.name}, 0 to {last}")

    def apply(self, x: Tensor, spec: Spec, generator: torch.Generator | None = None) -> Tensor:
        """Inputs with the trigger.

        Args:
            x: standardised inputs, ``(*shape)`` or ``(n, *shape)``, which stay as they are.
            spec: of the task.
            generator: of what is drawn for each input; ``None`` draws the same in every call.

        Returns:
            A new tensor.

        Raises:
            ConfigError: as :meth:`check`.
        """
        raise NotImplementedError

    def carriers(self, records: Split) -> Tensor:
        """The records on which it can succeed, ``(n,)`` bool: those whose true class is not the target.

        Counting records of the target class would put a floor of about one over the number of classes under a rate.
        """
        return records.y != self.target

    def asked(self, test: Split) -> Tensor:
        """The test records that tell whether it succeeds, ``(n,)`` bool."""
        return self.carriers(test)

    def bind(self, test: Split) -> "Trigger":
        """The trigger with what it takes from the test records.

        Raises:
            ConfigError: if they haven't got it.
        """
        return self

    def part(self, number: int) -> "Trigger":
        """What the poisoner's client ``number`` (from 0) uses of it: all, unless it is distributed among them."""
        return self

    def share(self, spec: Spec) -> float:
        """Share of the input that it changes, in [0, 1]."""
        raise NotImplementedError


def drawn(generator: torch.Generator | None) -> torch.Generator:
    """``generator``, or a new one that draws the same every time."""
    return torch.Generator().manual_seed(0) if generator is None else generator
