"""A patch of raw pixels (Gu et al. 2017, BadNets), or a spike on a signal."""

from dataclasses import dataclass
from math import isfinite, prod
from typing import Literal

import torch
from torch import Tensor

from privbench.benchmarks.build import require
from privbench.benchmarks.tasks.task import Spec
from privbench.benchmarks.tasks.triggers.trigger import Trigger, drawn

Place = Literal["top_left", "top_right", "bottom_left", "bottom_right", "centre", "random"]


@dataclass(frozen=True)
class Patch(Trigger):
    """A rectangle painted on an image at the size that the model sees, or a spike over all channels of a signal.

    Args:
        size: edge in pixels, or (rows, columns); of a signal its length in samples.
        place: a corner, the centre, (row, column) of the upper left pixel, or ``random`` for another place in every
            input. A signal has columns alone.
        colour: raw value: a pixel in [0, 1], or a signal's unit; one for all channels, or one a channel.
        opacity: share of the colour in what is painted, in (0, 1]; 1 hides what was there.
    """

    size: int | tuple[int, int] = 4
    place: Place | tuple[int, int] = "bottom_right"
    colour: float | tuple[float, ...] = 1.0
    opacity: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(min(self._size) > 0, "size", self.size, "at least 1")
        require(all(map(isfinite, self._colours)), "colour", self.colour, "finite values")
        require(0 < self.opacity <= 1, "opacity", self.opacity, "a share in (0, 1]")
        if isinstance(self.place, tuple):
            require(min(self.place) >= 0, "place", self.place, "a row and a column from 0")

    def check(self, spec: Spec) -> None:
        pixels = spec.domain in ("image", "signal")
        require(pixels, "task.trigger", "Patch", f"null: {spec.name} has {spec.domain}s, which have no pixels")
        rows, columns = self._extent(spec)
        edges = (rows, _height(spec)), (columns, spec.shape[-1])
        # A square is told of the shorter edge, whichever is too short for it.
        most = f"at most {min(spec.shape[1:])}, the input's edge"
        require(all(own <= edge for own, edge in edges), "task.trigger.size", self.size, most)
        row, column = self._corner(spec) if self.place != "random" else (0, 0)
        inside = row + rows <= _height(spec) and column + columns <= spec.shape[-1]
        require(inside, "task.trigger.place", self.place, f"a patch inside the input of shape {spec.shape}")
        colours = self._colours
        allowed = sorted({1, spec.shape[0]})
        each = f", or {spec.shape[0]}, one a channel" if spec.shape[0] > 1 else ""
        require(len(colours) in allowed, "task.trigger.colour", self.colour, f"one value{each}")
        if spec.domain == "image":
            in_range = all(0 <= c <= 1 for c in colours)
            require(in_range, "task.trigger.colour", self.colour, "raw pixel values in [0, 1]")
        super().check(spec)

    def apply(self, x: Tensor, spec: Spec, generator: torch.Generator | None = None) -> Tensor:
        """Outside the patch the result equals ``x`` bit for bit."""
        self.check(spec)
        raw = torch.as_tensor(self.colour, dtype=torch.float32).reshape(-1, *(1 for _ in spec.shape[1:]))
        paint = ((raw - spec.mean) / spec.std).expand(spec.shape).to(x)
        inside = self._inside(x, spec, generator)
        painted = paint if self.opacity == 1 else torch.lerp(x, paint.expand_as(x), self.opacity)
        return torch.where(inside, painted, x)

    def share(self, spec: Spec) -> float:
        return prod(self._extent(spec)) / (_height(spec) * spec.shape[-1])

    def _inside(self, x: Tensor, spec: Spec, generator: torch.Generator | None) -> Tensor:
        """Where it is painted: ``(height, width)``, or one such of each input; a signal's is ``(samples,)``."""
        rows, columns = self._extent(spec)
        height, width = _height(spec), spec.shape[-1]
        if self.place != "random":
            corner = torch.tensor([self._corner(spec)])
        else:
            several = 1 if x.dim() == len(spec.shape) else len(x)
            limits = torch.tensor([height - rows + 1, width - columns + 1])
            corner = (torch.rand(several, 2, generator=drawn(generator)) * limits).long()
        row, column = corner[:, :1] + torch.arange(rows), corner[:, 1:] + torch.arange(columns)
        inside = torch.zeros(len(corner), height, width, dtype=torch.bool)
        inside[torch.arange(len(corner))[:, None, None], row[:, :, None], column[:, None, :]] = True
        inside = inside[:, 0] if spec.domain == "signal" else inside
        return (inside[0] if len(inside) == 1 else inside[:, None]).to(x.device)

    @property
    def _colours(self) -> tuple[float, ...]:
        return self.colour if isinstance(self.colour, tuple) else (self.colour,)

    @property
    def _size(self) -> tuple[int, int]:
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)

    def _extent(self, spec: Spec) -> tuple[int, int]:
        """Rows and columns that it covers."""
        return (1, self._size[1]) if spec.domain == "signal" else self._size

    def _corner(self, spec: Spec) -> tuple[int, int]:
        """Row and column of its upper left pixel, where its place is fixed."""
        rows, columns = self._extent(spec)
        height, width = _height(spec), spec.shape[-1]
        if isinstance(self.place, tuple):
            row, column = self.place
        elif self.place == "centre":
            row, column = (height - rows) // 2, (width - columns) // 2
        else:
            row = 0 if self.place.startswith("top") else height - rows
            column = 0 if self.place.endswith("left") else width - columns
        return (0, column) if spec.domain == "signal" else (row, column)


def _height(spec: Spec) -> int:
    return 1 if spec.domain == "signal" else spec.shape[-2]
