"""What a layer's output and its weight's gradient say of its input: one linear system."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from privbench.attacks.leakage.activations import FAINT
from privbench.attacks.leakage.attack import AttackFailed

RANK = 1e-6
"""Singular values below this share of the largest count as zero: float32's rounding is as large."""

POWERS = 8
"""Steps of a power iteration."""

CHUNK = 1 << 25
"""Numbers in a block of the gradient's system that are there at once."""


@dataclass(frozen=True)
class Solved:
    """A layer's input, and how well it is determined.

    Args:
        name: of the layer.
        x: its input, ``(n,)``.
        unknowns: n.
        weights, gradients: how many constraints its output and its gradient give.
        rank: of them all; with less than n the input is the one of least norm.
        residual: what the input leaves of the constraints, as a share of their right-hand side.
    """

    name: str
    x: Tensor
    weights: int
    gradients: int
    rank: int
    residual: float

    @property
    def unknowns(self) -> int:
        return self.x.numel()

    def __str__(self) -> str:
        missing = self.unknowns - self.rank
        short = f", {missing} undetermined" if missing else ""
        constraints = f"{self.weights} + {self.gradients} constraints on {self.unknowns}{short}"
        return f"{self.name}: {constraints}, residual {self.residual:.0e}"


def linear_input(name: str, gradient: Tensor, k: Tensor) -> Solved:
    """``x`` of ``dL/dW = k x^T`` by least squares; weights say nothing more.

    Args:
        gradient: ``dL/dW``, ``(H, n)``.
        k: ``dL/dz``, ``(H,)``.

    Raises:
        AttackFailed: if k is zero.
    """
    if not k.any():
        raise AttackFailed(f"no gradient reaches the layer {name!r}: nothing is known of its input")
    x = k @ gradient / k.square().sum()
    left = (gradient - k[:, None] * x).norm() / gradient.norm().clamp_min(torch.finfo(k.dtype).tiny)
    return Solved(name, x, 0, gradient.numel(), x.numel(), float(left))


def convolution_input(
    name: str,
    layer: nn.Conv1d | nn.Conv2d,
    shape: tuple[int, ...],
    gradient: Tensor,
    k: Tensor,
    z: Tensor,
    trust: Tensor,
) -> Solved:
    """``x`` of ``W x = z - b`` and ``dL/dW_(o,c,u) = sum_p k_(o,p) x_(c, p s + u)``, stacked (Zhu and Blaschko 2021,
    section 3), by least squares.

    Rows are weighted by how well their right-hand side is known: those of z by the activation's derivative, those of
    the gradient by k's length in their output channel. The gradient's rows are the same for each input channel and are
    shortened by a QR decomposition; the normal equations are solved by Cholesky's, and where the system lacks rank by
    their eigenvectors, as far as it goes.

    Args:
        shape: of its input, ``(C, ...)``.
        gradient: ``dL/dW``, ``(O, C, ...)``.
        k: ``dL/dz``, ``(O, ...)``.
        z: its output, ``(O, ...)``.
        trust: the weight of each entry of ``z``, of its shape; where it is 0, z is unknown.

    Raises:
        AttackFailed: if k is zero.
    """
    if not k.any():
        raise AttackFailed(f"no gradient reaches the layer {name!r}: nothing is known of its input")
    spots = torch.Size(shape[1:]).numel()
    known = trust.flatten() > 0
    target = z if layer.bias is None else z - layer.bias.view(-1, *[1] * (z.dim() - 1))
    rows = _matrix(layer, shape)[known] * trust.flatten()[known, None]
    right = (target * trust).flatten()[known]
    own, own_right, count = _own(layer, shape, gradient, k, spots)
    gram = rows.T @ rows
    block = own.T @ own
    for c in range(shape[0]):
        part = slice(c * spots, (c + 1) * spots)
        gram[part, part] += block
    both = rows.T @ right + (own_right @ own).flatten()
    inverse, rank = _inverse(gram)
    x = inverse(both)
    # Once more for what is left, since the condition number is squared in the normal equations.
    x = x + inverse(rows.T @ (right - rows @ x) + ((own_right - x.view(shape[0], -1) @ own.T) @ own).flatten())
    left = torch.cat([right - rows @ x, (own_right - x.view(shape[0], -1) @ own.T).flatten()]).norm()
    size = torch.cat([right, own_right.flatten()]).norm().clamp_min(torch.finfo(x.dtype).tiny)
    return Solved(name, x, int(known.sum()), count, rank, float(left / size))


def _inverse(gram: Tensor) -> tuple[Callable[[Tensor], Tensor], int]:
    """The pseudo-inverse of the normal equations' matrix ``(n, n)``, and the system's numerical rank."""
    factor, failed = torch.linalg.cholesky_ex(gram)
    if not failed:
        ones = torch.ones(len(gram), 1, dtype=gram.dtype, device=gram.device)
        largest = _dominant(lambda v: gram @ v, ones)
        if 1 / _dominant(lambda v: torch.cholesky_solve(v, factor), ones) > RANK**2 * largest:
            return lambda b: torch.cholesky_solve(b[:, None], factor)[:, 0], len(gram)
    # Ten times the work, for systems that don't determine everything.
    values, vectors = torch.linalg.eigh(gram)
    kept = values > RANK**2 * values[-1]
    basis, values = vectors[:, kept], values[kept]
    return lambda b: basis @ ((basis.T @ b) / values), len(values)


def _dominant(apply: Callable[[Tensor], Tensor], v: Tensor) -> float:
    """The largest eigenvalue of a positive definite operator, to some ten per cent, by power iteration."""
    v = v + torch.linspace(-1, 1, len(v), dtype=v.dtype, device=v.device)[:, None]
    size = 0.0
    for _ in range(POWERS):
        v = apply(v / v.norm())
        size = float(v.norm())
    return size


def _matrix(layer: nn.Conv1d | nn.Conv2d, shape: tuple[int, ...]) -> Tensor:
    """The convolution without its bias as a matrix, ``(outputs, inputs)``."""
    unknowns = torch.Size(shape).numel()
    unit = torch.eye(unknowns, dtype=layer.weight.dtype, device=layer.weight.device)
    convolve = F.conv1d if isinstance(layer, nn.Conv1d) else F.conv2d
    blocks = unit.view(unknowns, *shape).split(512)
    made = [convolve(b, layer.weight, None, layer.stride, layer.padding, layer.dilation).flatten(1) for b in blocks]  # pyright: ignore[reportArgumentType, reportCallIssue]
    return torch.cat(made).T


def _own(
    layer: nn.Conv1d | nn.Conv2d, shape: tuple[int, ...], gradient: Tensor, k: Tensor, spots: int
) -> tuple[Tensor, Tensor, int]:
    """The gradient's rows for one input channel, ``(r, spots)`` with r <= spots, right-hand sides ``(C, r)``, and how
    many constraints they stand for."""
    flat = k.flatten(1)
    length = flat.norm(dim=1)
    heard = length > FAINT * length.max()
    flat = flat[heard] / length[heard, None]
    right = gradient.flatten(2)[heard] / length[heard, None, None]  # (O, C, u)
    # In the unit of z's rows: the typical right-hand side becomes 1, as theirs is.
    scale = right.square().mean().sqrt().clamp_min(torch.finfo(k.dtype).tiny)
    flat, right = flat / scale, right / scale
    one = torch.eye(spots, dtype=k.dtype, device=k.device)
    blocks = one.view(spots, 1, *shape[1:]).split(max(1, CHUNK // max(1, flat.numel() * layer.weight[0, 0].numel())))
    columns = [torch.einsum("nup,op->oun", _unfold(layer, b), flat).flatten(0, 1) for b in blocks]
    rows = torch.cat(columns, dim=1)
    right = right.transpose(0, 1).flatten(1)  # (C, O u)
    count = right.numel()
    if len(rows) > spots:
        q, rows = torch.linalg.qr(rows)
        right = right @ q
    return rows, right, count


def _unfold(layer: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """What each place of the kernel sees, ``(n, places, outputs)``, of ``x`` ``(n, 1, ...)``."""
    assert not isinstance(layer.padding, str)
    if isinstance(layer, nn.Conv2d):
        return F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    size, dilation, stride = ((1, p[0]) for p in (layer.kernel_size, layer.dilation, layer.stride))
    return F.unfold(x[:, :, None], size, dilation, (0, layer.padding[0]), stride)
