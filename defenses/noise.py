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
    u = _uniform(2 * pairs, source, generator).reshape(2, pairs)
    radius, angle = np.sqrt(-2 * np.log(u[0])), 2 * math.pi * u[1]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size]
    return torch.from_numpy((normal * std).astype(np.float32))


def discrete_gaussian(size: int, parameter: float, source: Source, generator: torch.Generator) -> Tensor:
    """``size`` independent draws k with probability in proportion to ``exp(-k^2 / (2 parameter^2))``, float64 integers.

    Rejection from a discrete Laplace distribution (Canonne, Kamath and Steinke 2020, algorithm 3), all at once. Values
    are integers, so that no low bit tells them apart; probabilities are computed in floating point from 53-bit
    uniforms, not exactly as there.

    Args:
        parameter: about the standard deviation; 0 gives zeros.
    """
    found: list[np.ndarray] = []
    scale, missing = math.floor(parameter) + 1, size if parameter else 0
    while missing > 0:
        # About two in three are kept, and every other zero.
        drawn = 2 * missing + 16
        u, v, w = _uniform(3 * drawn, source, generator).reshape(3, drawn)
        length, negative = np.floor(-scale * np.log(u)), v < 0.5
        value = np.where(negative, -length, length)
        keep = w < np.exp(-((length - parameter**2 / scale) ** 2) / (2 * parameter**2))
        keep &= ~(negative & (length == 0))
        found.append(value[keep][:missing])
        missing -= len(found[-1])
    return torch.from_numpy(np.concatenate([*found, np.zeros(0 if parameter else size)]))


def _uniform(size: int, source: Source, generator: torch.Generator) -> np.ndarray:
    """Uniforms of 53 bits inside (0, 1), float64."""
    if source == "seeded":
        bits = torch.randint(0, 2**53, (size,), generator=generator).numpy()
    else:
        bits = np.frombuffer(os.urandom(8 * size), dtype=np.uint64) >> 11
    return (bits.astype(np.float64) + 0.5) * 2.0**-53
