"""Random changes of training images, and how often a record is seen in one step."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from privbench.benchmarks.build import require
from privbench.benchmarks.tasks.task import Spec


@dataclass(frozen=True)
class Augmentation:
    """Each step sees every record of its batch ``multiplicity`` times, shifted and flipped at random.

    The record's gradient is the mean over its views, which DP-SGD clips as one (augmentation multiplicity, De et al.
    2022, section 3.2): it costs computation and no privacy.

    Args:
        multiplicity: views of a record in one step, at least 1.
        shift: pixels at most in each direction, after reflection at the border.
        flip: whether views are mirrored, left to right, with probability 1/2.
    """

    multiplicity: int = 1
    shift: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        require(self.multiplicity >= 1, "multiplicity", self.multiplicity, "at least 1")
        require(self.shift >= 0, "shift", self.shift, "pixels, at least 0")

    @property
    def idle(self) -> bool:
        """Whether records are seen as they are."""
        return self == Augmentation()

    def check(self, spec: Spec) -> None:
        """Refuse records that can't be shifted or flipped.

        Raises:
            ConfigError: if they aren't images, or are no larger than the shift.
        """
        field, picture = "federation.local.augmentation", spec.domain == "image"
        hint = f"0: {spec.name} has no pictures but {spec.domain}s"
        require(picture or not self.shift, f"{field}.shift", self.shift, hint)
        require(picture or not self.flip, f"{field}.flip", self.flip, "false: " + hint[3:])
        if picture:
            edge = min(spec.shape[1:])
            require(self.shift < edge, f"{field}.shift", self.shift, f"less than {edge}, a picture's edge")

    def views(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``(n * multiplicity, c, h, w)`` and labels; the views of a record follow each other.

        Args:
            x: ``(n, c, h, w)``.
            y: ``(n,)``.
            generator: on the CPU.
        """
        x, y = x.repeat_interleave(self.multiplicity, 0), y.repeat_interleave(self.multiplicity)
        n = len(x)
        if self.shift:
            height, width = x.shape[2:]
            moves = torch.randint(0, 2 * self.shift + 1, (2, n, 1), generator=generator).to(x.device)
            rows = moves[0] + torch.arange(height, device=x.device)
            columns = moves[1] + torch.arange(width, device=x.device)
            padded = F.pad(x, (self.shift,) * 4, mode="reflect").permute(0, 2, 3, 1)
            number = torch.arange(n, device=x.device)[:, None, None]
            x = padded[number, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        if self.flip:
            mirrored = torch.rand(n, generator=generator).to(x.device) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        return x, y
