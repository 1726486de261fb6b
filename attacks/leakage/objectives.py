"""Distances between gradients."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Objective(Protocol):
    """How far a candidate's gradient is from the observed one."""

    def __call__(self, gradient: Tensor, target: Tensor) -> Tensor:
        """Both of shape ``(d,)``; a scalar, 0 at best."""
        ...


@dataclass(frozen=True)
class SquaredDistance:
    """``||g - t||^2 / ||t||^2`` (Zhu et al. 2019, eq. 2, relative to the target so that tolerances mean the same)."""

    def __call__(self, gradient: Tensor, target: Tensor) -> Tensor:
        return (gradient - target).square().sum() / target.square().sum()


@dataclass(frozen=True)
class Cosine:
    """``1 - cos(g, t)`` over all layers jointly (Geiping et al. 2020, eq. 4).

    Computed as ``||g/|g| - t/|t|||^2 / 2``: the same value, but ``1 - cos`` cancels in float32 near its minimum.
    """

    def __call__(self, gradient: Tensor, target: Tensor) -> Tensor:
        # The guard keeps a candidate whose gradient vanishes (all units dead) from ending in NaN.
        unit = gradient / gradient.norm().clamp_min(torch.finfo(gradient.dtype).tiny)
        return (unit - target / target.norm()).square().sum() / 2


@dataclass(frozen=True)
class Weighted:
    """``base`` between gradients whose coordinates are multiplied by ``weights`` first.

    Args:
        base: the distance.
        weights: ``(d,)``: 0 and 1 for a mask (what a client pruned says nothing), one number a layer for layer-wise
            weights.
    """

    base: Objective
    weights: Tensor

    def __call__(self, gradient: Tensor, target: Tensor) -> Tensor:
        return self.base(gradient * self.weights, target * self.weights)
