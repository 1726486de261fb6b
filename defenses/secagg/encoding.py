"""From an update to integers modulo 2^32 or 2^64, and from their sum back to numbers."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Rounding = Literal["stochastic", "nearest"]
Ring = Literal[32, 64]
Integers = np.ndarray[Any, np.dtype[np.unsignedinteger[Any]]]


@dataclass(frozen=True)
class Encoding:
    """Fixed point: a coordinate x becomes the integer ``x / step``, rounded, from ``-levels`` to ``levels``.

    What comes back of a weighted mean of coordinates of up to ``range - step`` differs from it by less than one
    ``step`` (``stochastic``, which is right on average) or by at most half of one (``nearest``), however many are
    summed: an average of rounding errors is no larger than the largest.

    Args:
        range: > 0; what lies beyond ``range - step`` is clipped to that.
        bits: of one coordinate's integer, sign included, from 2.
        ring: sums are modulo 2 to this.
        rounding: to the next integer, or at random to one of the two around with x as the mean.
    """

    range: float
    bits: int
    ring: Ring
    rounding: Rounding

    @property
    def levels(self) -> int:
        """The largest integer."""
        return 2 ** (self.bits - 1) - 1

    @property
    def step(self) -> float:
        """What one unit of the integers is worth: a power of two if ``range`` is one."""
        return self.range / 2 ** (self.bits - 1)

    @property
    def capacity(self) -> int:
        """The summed weights up to which no sum can overflow: ``capacity * levels < 2^(ring - 1)``."""
        return (2 ** (self.ring - 1) - 1) // self.levels

    def encode(self, vector: Tensor, generator: torch.Generator, clips: bool = True) -> Integers:
        """Integers modulo 2^ring.

        Args:
            vector: ``(m,)``, finite.
            generator: for stochastic rounding.
            clips: limit each coordinate; without, what is too long wraps around the ring, and may do so in the sum.
        """
        scaled = vector.double() / self.step
        if self.rounding == "stochastic":
            scaled = (scaled + torch.rand(len(scaled), generator=generator)).floor_()
        else:
            scaled = scaled.round_()
        if clips:
            scaled.clamp_(-self.levels, self.levels)
        # Numpy's cast to fewer bits keeps the last ones, which is the remainder.
        return scaled.to(torch.int64).numpy().astype(self.dtype)

    def decode(self, total: Integers) -> Tensor:
        """Numbers of a sum ``(m,)``, float64."""
        signed = total.view(np.int32 if self.ring == 32 else np.int64)
        return torch.from_numpy(signed.astype(np.float64) * self.step)

    @property
    def dtype(self) -> type[np.unsignedinteger[Any]]:
        return np.uint32 if self.ring == 32 else np.uint64
