"""The backdoor trigger: a patch of raw pixels (Gu et al. 2017, BadNets), or a spike on a signal."""

from dataclasses import dataclass
from math import isfinite, prod
from typing import Literal

import torch
from torch import Tensor

from privbench.benchmarks.build import require
from privbench.benchmarks.tasks.task import Spec

Place = Literal["top_left", "top_right", "bottom_left", "bottom_right", "centre"]


@dataclass(frozen=True)
class Patch:
    """A square painted on an image at the size that the model sees, or a spike over all channels of a signal.

    Args:
        size: edge in pixels, or length in samples.
        place: a corner, the centre, or (row, column) of the upper left pixel. A signal has columns alone.
        colour: raw value: a pixel in [0, 1], or a signal's unit; one for all channels, or one a channel.
        target: the class that the backdoor asks for.
    """

    size: int = 4
    place: Place | tuple[int, int] = "bottom_right"
    colour: float | tuple[float, ...] = 1.0
    target: int = 0

    def __post_init__(self) -> None:
        require(self.size > 0, "size", self.size, "at least 1")
        require(self.target >= 0, "target", self.target, "the number of a class")
        require(all(map(isfinite, self._colours)), "colour", self.colour, "finite values")
        if isinstance(self.place, tuple):
            require(min(self.place) >= 0, "place", self.place, "a row and a column from 0")

    def check(self, spec: Spec) -> None:
        """Raises:
        ConfigError: if the patch can't be painted on inputs of ``spec``, or its target is not a class.
        """
        pixels = spec.domain in ("image", "signal")
        require(pixels, "task.trigger", "Patch", f"null: {spec.name} has {spec.domain}s, which have no pixels")
        smallest = min(spec.shape[1:])
        require(self.size <= smallest, "task.trigger.size", self.size, f"at most {smallest}, the input's edge")
        rows, columns = self._window(spec)
        inside = rows.stop <= _height(spec) and columns.stop <= spec.shape[-1]
        require(inside, "task.trigger.place", self.place, f"a patch inside the input of shape {spec.shape}")
        colours = self._colours
        allowed = sorted({1, spec.shape[0]})
        require(len(colours) in allowed, "task.trigger.colour", self.colour, f"{' or '.join(map(str, allowed))} values")
        if spec.domain == "image":
            in_range = all(0 <= c <= 1 for c in colours)
            require(in_range, "task.trigger.colour", self.colour, "raw pixel values in [0, 1]")
        last = len(spec.classes) - 1
        require(self.target <= last, "task.trigger.target", self.target, f"a class of {spec.name}, 0 to {last}")

    def apply(self, x: Tensor, spec: Spec) -> Tensor:
        """Paint the patch.

        Args:
            x: standardised inputs, ``(*shape)`` or ``(n, *shape)``, which stay as they are.
            spec: of the task.

        Returns:
            A new tensor; outside the patch it equals ``x`` bit for bit.

        Raises:
            ConfigError: as :meth:`check`.
        """
        self.check(spec)
        rows, columns = self._window(spec)
        raw = torch.as_tensor(self.colour, dtype=torch.float32).reshape(-1, *(1 for _ in spec.shape[1:]))
        paint = ((raw - spec.mean) / spec.std).expand(spec.shape).to(x)
        painted = x.clone()
        window = (..., rows, columns) if spec.domain == "image" else (..., columns)
        painted[window] = paint[window]
        return painted

    def share(self, spec: Spec) -> float:
        """Share of the input that the patch covers, in (0, 1]."""
        return self.size / spec.shape[-1] if spec.domain == "signal" else self.size**2 / prod(spec.shape[-2:])

    @property
    def _colours(self) -> tuple[float, ...]:
        return self.colour if isinstance(self.colour, tuple) else (self.colour,)

    def _window(self, spec: Spec) -> tuple[slice, slice]:
        height, width = _height(spec), spec.shape[-1]
        if isinstance(self.place, tuple):
            row, column = self.place
        elif self.place == "centre":
            row, column = (height - self.size) // 2, (width - self.size) // 2
        else:
            row = 0 if self.place.startswith("top") else height - self.size
            column = 0 if self.place.endswith("left") else width - self.size
        if spec.domain == "signal":
            return slice(0, 1), slice(column, column + self.size)
        return slice(row, row + self.size), slice(column, column + self.size)


def _height(spec: Spec) -> int:
    return 1 if spec.domain == "signal" else spec.shape[-2]
