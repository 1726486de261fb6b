"""Norms and clipped sums of units' gradients, layer by layer, from inputs and the outputs' gradients."""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn import functional as F

from privbench.defenses.local.per_sample.engine import Unsupported
from privbench.defenses.local.per_sample.windows import Windows

CHUNK = 1 << 19
"""Entries of windows (2 MiB) that a convolution unfolds at once: what stays in a core's cache."""


KEPT = 1 << 14
"""Entries (64 KiB) of a convolution's gradient up to which it is kept for every unit."""


ROUNDING = 16
"""Units in the last place by which a sum of products may be off."""


class Layer(Protocol):
    """A layer's inputs and its outputs' gradients."""

    def squared_norms(self) -> Tensor:
        """Of each unit's gradient of this layer's parameters, ``(n,)``."""
        ...

    def add(self, factor: Tensor) -> None:
        """Add the sum of the units' gradients, times ``factor``, ``(n,)``, to the parameters' ``grad``.

        The last that is asked: it may use up what it holds.
        """
        ...


def layer(module: nn.Module, x: Tensor, g: Tensor, views: int) -> Layer:
    """How to go about this layer.

    Args:
        module: it.
        x: its input, ``(n * views, ...)``.
        g: the gradient of the sum of the units' losses with respect to its output, ``(n * views, ...)``.
        views: records a unit.
    """
    if type(module) is nn.Linear:
        return _Linear(module, x, g, views)
    if type(module) in (nn.Conv1d, nn.Conv2d) and Windows.fit(module):
        return _Convolution(module, x, g, views)
    if isinstance(module, nn.GroupNorm):
        return _Kept(module, _group_norm(module, x, g, views))
    return _Kept(module, _any(module, x, g, views))


class _Linear:
    def __init__(self, module: nn.Linear, x: Tensor, g: Tensor, views: int) -> None:
        n = len(g) // views
        self.module, self.x, self.g = module, x.reshape(n, -1, x.shape[-1]), g.reshape(n, -1, g.shape[-1])

    def squared_norms(self) -> Tensor:
        x, g = self.x, self.g
        squares = g.new_zeros(len(g))
        if self.module.weight.requires_grad:
            squares += squared_norms(x, g)
        if self.module.bias is not None and self.module.bias.requires_grad:
            squares += _squares(g.sum(1))
        return squares

    def add(self, factor: Tensor) -> None:
        weight, bias = self.module.weight, self.module.bias
        g = (self.g * factor[:, None, None]).flatten(0, 1)
        if weight.requires_grad:
            assert weight.grad is not None
            weight.grad.addmm_(g.t(), self.x.flatten(0, 1))
        if bias is not None and bias.requires_grad:
            assert bias.grad is not None
            bias.grad.add_(g.sum(0))


def squared_norms(x: Tensor, g: Tensor) -> Tensor:
    """Of ``g_u^T x_u``, ``(n,)``, for inputs ``(n, t, i)`` and outputs' gradients ``(n, t, o)``."""
    t, i, o = x.shape[1], x.shape[2], g.shape[2]
    if t == 1:
        return _squares(x) * _squares(g)
    if ghost(t, i, o):
        inputs, gradients = torch.bmm(x, x.transpose(1, 2)), torch.bmm(g, g.transpose(1, 2))
        # Positions may cancel almost, as they do before a group norm. What rounding can take away is added, so that
        # nothing is clipped by less than its norm.
        diagonals = (one.diagonal(dim1=1, dim2=2).clamp(min=0) for one in (inputs, gradients))
        most = torch.stack([*diagonals]).prod(0).sqrt().sum(1).square()
        return (inputs * gradients).sum((1, 2)).clamp(min=0) + ROUNDING * torch.finfo(g.dtype).eps * most
    return _squares(torch.bmm(g.transpose(1, 2), x))


def _squares(g: Tensor) -> Tensor:
    """Squared norms, ``(n,)``."""
    # One pass over memory, where a square and a sum are two.
    return torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1).square()


def ghost(t: int, i: int, o: int) -> bool:
    """Whether two ``(t, t)`` products of inputs and of gradients are cheaper than the ``(o, i)`` gradient itself."""
    return t * (i + o) < i * o


class _Convolution:
    """Small gradients are kept for the sum, which is then cheaper than to convolve again."""

    def __init__(self, module: nn.Conv1d | nn.Conv2d, x: Tensor, g: Tensor, views: int) -> None:
        self.module, self.views, self.windows = module, views, Windows(module, x, g)
        n, o, i = len(g) // views, g.shape[1], self.windows.shape[2]
        self.kept = g.new_empty(n, o, i) if o * i <= KEPT else None
        self.biases = g.new_empty(n, o)

    def squared_norms(self) -> Tensor:
        _, t, i = self.windows.shape
        n = len(self.biases)
        squares = self.biases.new_zeros(n)
        step = max(1, CHUNK // (t * i * self.views))
        for start in range(0, n, step):
            part = slice(start, min(n, start + step))
            g = self.windows.gradients(part.start * self.views, part.stop * self.views)
            g = g.reshape(-1, self.views * t, g.shape[-1])
            if self.module.weight.requires_grad:
                x = self.windows.inputs(part.start * self.views, part.stop * self.views).reshape(len(g), -1, i)
                if self.kept is not None:
                    squares[part] += _squares(torch.bmm(g.transpose(1, 2), x, out=self.kept[part]))
                else:
                    squares[part] += squared_norms(x, g)
            if self.module.bias is not None and self.module.bias.requires_grad:
                squares[part] += _squares(torch.sum(g, 1, out=self.biases[part]))
        return squares

    def add(self, factor: Tensor) -> None:
        weight, bias = self.module.weight, self.module.bias
        if weight.requires_grad:
            assert weight.grad is not None
            if self.kept is not None:
                total = self.windows.weights(torch.tensordot(factor, self.kept, dims=1))
            else:
                total = self.windows.sums(factor.repeat_interleave(self.views))
            weight.grad.add_(total.reshape(weight.shape))
        if bias is not None and bias.requires_grad:
            assert bias.grad is not None
            bias.grad.add_(factor @ self.biases)


class _Kept:
    """A layer with few parameters: each unit's gradient is kept."""

    def __init__(self, module: nn.Module, gradients: dict[str, Tensor]) -> None:
        self.module, self.gradients = module, gradients

    def squared_norms(self) -> Tensor:
        return torch.stack([_squares(g) for g in self.gradients.values()]).sum(0)

    def add(self, factor: Tensor) -> None:
        for name, g in self.gradients.items():
            p = self.module.get_parameter(name)
            assert p.grad is not None
            p.grad.add_(torch.tensordot(factor, g, dims=1))


def _group_norm(module: nn.GroupNorm, x: Tensor, g: Tensor, views: int) -> dict[str, Tensor]:
    normal = F.group_norm(x, module.num_groups, None, None, module.eps)
    made = {"weight": g * normal, "bias": g}
    return {
        name: _by_unit(made[name].flatten(2).sum(2) if g.dim() > 2 else made[name], views)
        for name, p in module.named_parameters(recurse=False)
        if p.requires_grad
    }


def _any(module: nn.Module, x: Tensor, g: Tensor, views: int) -> dict[str, Tensor]:
    """By ``torch.func``, for a layer that nobody wrote a rule for."""
    values = {name: p.detach() for name, p in module.named_parameters(recurse=False) if p.requires_grad}

    def gradient(one: Tensor, back: Tensor) -> dict[str, Tensor]:
        pull = vjp(lambda v: functional_call(module, v, (one[None],)), values)[1]
        return pull(back[None])[0]

    try:
        made = vmap(gradient)(x, g)
    except RuntimeError as error:
        raise Unsupported(f"{type(module).__name__}: {str(error).splitlines()[0]}") from error
    return {name: _by_unit(one, views) for name, one in made.items()}


def _by_unit(gradients: Tensor, views: int) -> Tensor:
    """Sums over each unit's records, ``(n, ...)``."""
    return gradients if views == 1 else gradients.unflatten(0, (-1, views)).sum(1)
