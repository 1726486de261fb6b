"""Gaussian noise from a named source."""

import math
import os
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Source = Literal["seeded", "system"]


def gaussian(size: int, std: float, source: Source, generator: torch.Generator) -> Tensor:
    """``size`` independent draws from N(0, std^2), float32, on the CPU.

    ``seeded`` draws from ``generator``: reproducible, and whoever knows the seed can subtract it, so its guarantee is
    simulated. ``system`` draws from the operating system's cryptographic generator (Box-Muller on 53-bit uniforms).
    Both are floating point, which Mironov 2012 attacks; see LIMITATIONS.
    """
    if source == "seeded":
        return torch.randn(size, generator=generator) * std
    pairs = (size + 1) // 2
    bits = np.frombuffer(os.urandom(pairs * 16), dtype=np.uint64).reshape(2, pairs) >> 11
    u = (bits.astype(np.float64) + 0.5) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(u[0])), 2 * math.pi * u[1]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size]
    return torch.from_numpy((normal * std).astype(np.float32))
