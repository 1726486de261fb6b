"""Activations undone: the input and the derivative from the output."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

TINY = 1e-12
"""How far from its limits a bounded activation's output is taken to be at least."""

FAINT = 1e-5
"""Outputs of a ReLU below this share of the largest are zeros, up to rounding of float32."""

Undone = tuple[Tensor, Tensor]


def _leaky(module: nn.LeakyReLU, a: Tensor) -> Undone:
    slope = module.negative_slope
    return torch.where(a > 0, a, a / slope), torch.where(a > 0, 1.0, slope).to(a)


def _relu(module: nn.ReLU, a: Tensor) -> Undone:
    return a, (a > FAINT * a.max()).to(a)


def _sigmoid(module: nn.Sigmoid, a: Tensor) -> Undone:
    a = a.clamp(TINY, 1 - TINY)
    return torch.logit(a), a * (1 - a)


def _tanh(module: nn.Tanh, a: Tensor) -> Undone:
    a = a.clamp(TINY - 1, 1 - TINY)
    return torch.atanh(a), 1 - a.square()


def _elu(module: nn.ELU, a: Tensor) -> Undone:
    below = (a / module.alpha).clamp(TINY - 1, 0)
    return torch.where(a > 0, a, below.log1p()), torch.where(a > 0, 1.0, module.alpha * (1 + below))


def _softplus(module: nn.Softplus, a: Tensor) -> Undone:
    scaled = (module.beta * a).clamp_min(TINY)
    # log(exp(v) - 1) without overflow.
    return (scaled + torch.log(-torch.expm1(-scaled))) / module.beta, -torch.expm1(-scaled)


def _identity(module: nn.Identity, a: Tensor) -> Undone:
    return a, torch.ones_like(a)


INVERSES: dict[type[nn.Module], Callable[..., Undone]] = {
    nn.Identity: _identity,
    nn.LeakyReLU: _leaky,
    nn.ReLU: _relu,
    nn.Sigmoid: _sigmoid,
    nn.Tanh: _tanh,
    nn.ELU: _elu,
    nn.Softplus: _softplus,
}
"""By module: from its output, of any shape, its input and its derivative there. A ReLU's input is known where its
derivative isn't 0, and so is that of any activation, the worse the flatter it is: constraints are to be weighted by
it."""


def invertible(module: nn.Module) -> bool:
    """Whether :func:`undo` can be called."""
    return type(module) in INVERSES and not (isinstance(module, nn.LeakyReLU) and module.negative_slope <= 0)


def undo(module: nn.Module, a: Tensor) -> Undone:
    """``(z, act'(z))`` from ``a = act(z)``, both of a's shape."""
    return INVERSES[type(module)](module, a)
