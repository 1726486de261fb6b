"""Distances between gradients."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class Objective(Protocol):
    """How far a candidate's gradient is from the observed one."""

    def __call__(self, gradient: Tensor, target: Tensor) -> Tensor:
        """Both of shape ``(d,)``; a scalar, 0 at best."""
        ...

    def against(self, targets: Tensor) -> Callable[[Tensor], Tensor]:
        """``gradients (R, d) -> (R,)`` for targets ``(R, d)``; once differentiable, in the gradients."""
        ...


@dataclass(frozen=True)
class SquaredDistance:
    """``||g - t||^2 / ||t||^2`` (Zhu et al. 2019, eq. 2, relative to the target so that tolerances mean the same)."""

    def __call__(self, gradient: Tensor, target: Tensor) -> Tensor:
        return (gradient - target).square().sum() / target.square().sum()

    def against(self, targets: Tensor) -> Callable[[Tensor], Tensor]:
        scale = targets.square().sum(1)
        return lambda gradients: _HalfSquare.apply(gradients - targets) * (2 / scale)


@dataclass(frozen=True)
class Cosine:
    """``1 - cos(g, t)`` over all layers jointly (Geiping et al. 2020, eq. 4).

    Computed as ``||g/|g| - t/|t|||^2 / 2``: the same value, but ``1 - cos`` cancels in float32 near its minimum.
    """

    def __call__(self, gradient: Tensor, target: Tensor) -> Tensor:
        # The guard keeps a candidate whose gradient vanishes (all units dead) from ending in NaN.
        unit = gradient / gradient.norm().clamp_min(torch.finfo(gradient.dtype).tiny)
        return (unit - target / target.norm()).square().sum() / 2

    def against(self, targets: Tensor) -> Callable[[Tensor], Tensor]:
        units = targets / targets.norm(dim=1, keepdim=True)
        return lambda gradients: _UnitDistance.apply(gradients, units)


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

    def against(self, targets: Tensor) -> Callable[[Tensor], Tensor]:
        base = self.base.against(targets * self.weights)
        return lambda gradients: base(gradients * self.weights)


class _HalfSquare(Function):
    """``||r||^2 / 2`` by row, in two passes over the numbers where automatic differentiation takes five."""

    @staticmethod
    def forward(ctx: Any, r: Tensor) -> Tensor:
        ctx.save_for_backward(r)
        return torch.linalg.vecdot(r, r) / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (r,) = ctx.saved_tensors
        return r * grads[0][:, None]


class _UnitDistance(Function):
    """``||g/|g| - u||^2 / 2`` by row for unit vectors ``u``, likewise."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, u: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(g, dim=1, keepdim=True).clamp_min(torch.finfo(g.dtype).tiny)
        r = (g / length).sub_(u)
        ctx.save_for_backward(g, length, r)
        return torch.linalg.vecdot(r, r) / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        g, length, r = ctx.saved_tensors
        # With e = g/|g|: the slope is (r - e (e . r)) / |g|.
        scale = grads[0][:, None] / length
        along = torch.linalg.vecdot(g, r)[:, None] / length.square()
        return (r * scale).addcmul_(g, -along * scale), None
