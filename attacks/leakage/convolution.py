"""A convolution whose weights' gradient is wanted row by row, and its derivatives, all of them plain convolutions.

PyTorch's own second derivative of a convolution takes an image for a filter, which is slow on a CPU. With ``C(x, w)``
for the convolution, ``X(g, w)`` for its adjoint in ``x`` and ``W(x, g)`` for that in ``w``, the derivatives of each are
the other two. Rows of few products are the groups of one convolution, others go one by one; in both cases with channels
last in memory.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

SMALL = 3e6
"""Products of one row up to which the rows are groups of one convolution."""


@dataclass(frozen=True)
class Geometry:
    """Of a two-dimensional convolution.

    Args:
        rows: so many parts of equal size the batch has, each with weights of its own.
        grouped: all rows in one convolution.
        size: of the input, ``(height, width)``.
        kernel: ``(height, width)``.
        more: stride, padding and dilation, each ``[in height, in width]``.
    """

    rows: int
    grouped: bool
    size: tuple[int, int]
    kernel: tuple[int, int]
    more: tuple[list[int], list[int], list[int]]


class Convolution(Function):
    """``(x, w, b, rows_w, rows_b, geometry) -> y``; the gradient goes to the rows' weights and biases.

    ``x`` ``(R * B, C, H, W)``, ``w`` ``(O, C, kh, kw)`` and ``b`` ``(O,)`` or ``None`` without a gradient; ``rows_w``
    ``(R, O, C, kh, kw)`` and ``rows_b`` ``(R, O)`` or ``None`` hold the same numbers R times.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, rows_w: Tensor, rows_b: Tensor | None, geometry: Geometry
    ) -> Tensor:
        shared = rows_w if geometry.grouped else w
        ctx.save_for_backward(x, shared)
        ctx.geometry, ctx.biased = geometry, b is not None
        if geometry.grouped:
            return _forward(x, shared, rows_b, geometry)
        return _conv(x, w, b, geometry)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, w), (g,), geometry = ctx.saved_tensors, grads, ctx.geometry
        g_x = _Input.apply(g, w.detach(), geometry) if ctx.needs_input_grad[0] else None
        if not torch.is_grad_enabled():
            # The last derivative, which is in x alone.
            return g_x, None, None, None, None, None
        g_b = g.unflatten(0, (geometry.rows, -1)).sum((1, 3, 4)) if ctx.biased else None
        return g_x, None, None, _Weight.apply(x, g, geometry), g_b, None


class _Input(Function):
    """``X(g, w)`` with weights that all rows share."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(w)
        ctx.geometry = geometry
        return _input(g, w, geometry) if geometry.grouped else _conv_input(g, w, geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (w,), geometry = ctx.saved_tensors, ctx.geometry
        run = _forward if geometry.grouped else _conv
        return run(grads[0], w, None, geometry), None, None


class _Weight(Function):
    """``W(x, g)`` of each row, ``(R, O, C, kh, kw)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, g)
        ctx.geometry = geometry
        if geometry.grouped:
            found = _conv_weight(_group(x, geometry), _group(g, geometry), geometry)
            return found.unflatten(0, (geometry.rows, -1))
        each = zip(x.chunk(geometry.rows), g.chunk(geometry.rows), strict=True)
        return torch.stack([_conv_weight(a, b, geometry) for a, b in each])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, g), (u,), geometry = ctx.saved_tensors, grads, ctx.geometry
        if geometry.grouped:
            # Laid out once for both.
            u = _last(u.flatten(0, 1)).unflatten(0, (geometry.rows, -1))
        g_x = _input(g, u, geometry) if ctx.needs_input_grad[0] else None
        return g_x, _forward(x, u, None, geometry), None


def _forward(x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry) -> Tensor:
    """``C`` with weights of each row's own, ``(R, O, C, kh, kw)``."""
    if geometry.grouped:
        y = _conv(_group(x, geometry), w.flatten(0, 1), None if b is None else b.flatten(), geometry)
        return _ungroup(y, geometry)
    assert b is None
    return _each([_conv(a, v, None, geometry) for a, v in zip(x.chunk(geometry.rows), w, strict=True)])


def _input(g: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    """``X`` with weights of each row's own."""
    if geometry.grouped:
        return _ungroup(_conv_input(_group(g, geometry), w.flatten(0, 1), geometry), geometry)
    return _each([_conv_input(a, v, geometry) for a, v in zip(g.chunk(geometry.rows), w, strict=True)])


def _each(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _group(x: Tensor, geometry: Geometry) -> Tensor:
    """``(R * B, C, H, W)`` to ``(B, R * C, H, W)``; of single records a view, where it came from :func:`_ungroup`."""
    y = x.unflatten(0, (geometry.rows, -1)).permute(1, 3, 4, 0, 2).flatten(3)
    return y.permute(0, 3, 1, 2)


def _ungroup(y: Tensor, geometry: Geometry) -> Tensor:
    return y.unflatten(1, (geometry.rows, -1)).transpose(0, 1).flatten(0, 1)


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _conv(x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry) -> Tensor:
    return torch.conv2d(_last(x), _last(w), b, *geometry.more, x.shape[1] // w.shape[1])


def _conv_input(g: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    groups = g.shape[1] // w.shape[0] if not geometry.grouped else geometry.rows
    x = g.new_empty(len(g), *geometry.size, w.shape[1] * groups).permute(0, 3, 1, 2)  # looked at for its shape alone
    return _backward(g, x, _last(w), groups, geometry, 0)


def _conv_weight(x: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
    groups = geometry.rows if geometry.grouped else 1
    w = g.new_empty(g.shape[1], *geometry.kernel, x.shape[1] // groups).permute(0, 3, 1, 2)
    return _backward(g, _last(x), w, groups, geometry, 1)


def _backward(g: Tensor, x: Tensor, w: Tensor, groups: int, geometry: Geometry, wanted: int) -> Tensor:
    mask = [wanted == 0, wanted == 1, False]
    more = (*geometry.more, False, [0, 0], groups, mask)
    return torch.ops.aten.convolution_backward(_last(g), x, w, None, *more)[wanted]
