"""A trigger of four parts, of which each attacker poisons with one (DBA, Xie et al. 2020)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from privbench.benchmarks.build import require
from privbench.benchmarks.tasks.task import Spec
from privbench.benchmarks.tasks.triggers.patch import Patch
from privbench.benchmarks.tasks.triggers.trigger import Trigger

PARTS = 4


@dataclass(frozen=True)
class Distributed(Trigger):
    """Four bars in two rows and two columns. The model is tested with all of them.

    Args:
        size: columns of a bar, which is one row high (the paper's TS).
        gap: (rows, columns) between bars (TG).
        corner: (row, column) of the first (TL).
        colour: raw pixel value in [0, 1]; one for all channels, or one a channel.
        split: whether each attacker paints one bar; else all of them paint all, the paper's centralised attack.
    """

    size: int = 4
    gap: tuple[int, int] = (2, 2)
    corner: tuple[int, int] = (0, 0)
    colour: float | tuple[float, ...] = 1.0
    split: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.size > 0, "size", self.size, "at least 1")
        require(min(self.gap) >= 0, "gap", self.gap, "rows and columns from 0")
        require(min(self.corner) >= 0, "corner", self.corner, "a row and a column from 0")
        self._bar(0)

    def check(self, spec: Spec) -> None:
        require(
            spec.domain == "image", "task.trigger", "Distributed", f"null: {spec.name} has {spec.domain}s, no images"
        )
        bars = [self._bar(number) for number in range(PARTS)]
        last, size = bars[-1].place, self.size
        assert isinstance(last, tuple)
        require(size <= spec.shape[-1], "task.trigger.size", size, f"at most {spec.shape[-1]}, the input's columns")
        inside = last[0] < spec.shape[-2] and last[1] + size <= spec.shape[-1]
        hint = f"a place where all four bars are inside the input of shape {spec.shape}; or smaller bars and gaps"
        require(inside, "task.trigger.corner", self.corner, hint)
        for bar in bars:
            bar.check(spec)

    def apply(self, x: Tensor, spec: Spec, generator: torch.Generator | None = None) -> Tensor:
        self.check(spec)
        for number in range(PARTS):
            x = self._bar(number).apply(x, spec)
        return x

    def part(self, number: int) -> Trigger:
        return self._bar(number) if self.split else self

    def _bar(self, number: int) -> Patch:
        """The bar of the poisoner's client ``number``; the fifth client has the first bar again."""
        down, right = divmod(number % PARTS, 2)
        row = self.corner[0] + down * (1 + self.gap[0])
        column = self.corner[1] + right * (self.size + self.gap[1])
        return Patch(size=(1, self.size), place=(row, column), colour=self.colour, target=self.target)

    def share(self, spec: Spec) -> float:
        return sum(self._bar(number).share(spec) for number in range(PARTS))
