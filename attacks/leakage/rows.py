"""The gradients of many rows of records in one pass through their model."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

from privbench.attacks.leakage.convolution import SMALL, Convolution, Geometry

FILTERS = 2**16
"""Weights of a convolution up to which copies are made; those of larger ones are copied where they are used."""


class NoRows(Exception):
    """One pass can't tell the gradients of this model's rows apart."""


class PerRow(TorchFunctionMode):
    """While it is active, layers hand the gradient of their weights to each row's own copy.

    Of convolutions without groups, linear layers and group normalisation; other layers with weights go on as they do,
    and their copies get nothing.

    Args:
        rows: so many parts of equal size every batch has.
        parameters: of the model, by name.
    """

    def __init__(self, rows: int, parameters: dict[str, Tensor]):
        super().__init__()
        self.rows = rows
        self.copies = {name: _copies(p, rows) for name, p in parameters.items()}
        self._own = {id(p): self.copies[name] for name, p in parameters.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        layer = _LAYERS.get(func)
        return func(*args, **(kwargs or {})) if layer is None else layer(self, *args, **(kwargs or {}))

    def of(self, parameter: Tensor) -> Tensor:
        """Its copies, ``(R, *shape)``."""
        if id(parameter) not in self._own:
            raise NoRows("a layer's weights are no parameters of the model")
        return self._own[id(parameter)]


def gradients(loss: Callable[[], Tensor], mode: PerRow) -> Tensor:
    """Of each row's loss, ``(R, d)``, once more differentiable in what ``loss`` was computed from.

    Args:
        loss: the mean of the rows' losses.

    Raises:
        NoRows: a parameter's gradient isn't to be had.
    """
    with mode:
        value = loss() * mode.rows
    copies = list(mode.copies.values())
    parts = torch.autograd.grad(value, copies, create_graph=True, allow_unused=True)
    found = [part.flatten(1) for part in parts if part is not None]
    if len(found) < len(parts):
        raise NoRows("a layer that is neither convolution, linear nor group normalisation has weights")
    return torch.cat(found, 1)


def astray(loss: Callable[[], Tensor], mode: PerRow, parameters: list[Tensor]) -> bool:
    """Whether some of the loss reaches ``parameters``, which need gradients, past the layers' copies: as a penalty on
    the weights in it does. Copies wouldn't have that part of the gradient.

    Args:
        mode: made of ``parameters``.
    """
    with mode:
        value = loss()
    parts = torch.autograd.grad(value, parameters, allow_unused=True)
    return any(part is not None and bool(part.any()) for part in parts)


def _copies(parameter: Tensor, rows: int) -> Tensor:
    copies = parameter.detach().expand(rows, *parameter.shape)
    if parameter.ndim == 4 and parameter.numel() <= FILTERS:
        # In memory as `convolution` takes them, so that no evaluation has to reorder them.
        copies = copies.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (rows, -1))
    return copies.requires_grad_()


# Arguments are named as the functions that they stand for name them.


def _convolution(
    mode: PerRow,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if groups != 1 or isinstance(padding, str) or input.ndim != 4:
        raise NoRows("a convolution has groups, or its padding a name")
    more = list(_pair(stride)), list(_pair(padding)), list(_pair(dilation))
    # About: the output is smaller than the input by the strides, and by a border without padding.
    products = weight.numel() * input[: len(input) // mode.rows, 0].numel() // (more[0][0] * more[0][1])
    size, kernel = (input.shape[2], input.shape[3]), (weight.shape[2], weight.shape[3])
    geometry = Geometry(mode.rows, mode.rows > 1 and products <= SMALL, size, kernel, more)
    own = mode.of(weight), None if bias is None else mode.of(bias)
    return Convolution.apply(input, weight, bias, *own, geometry)


def _linear(mode: PerRow, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y = torch.bmm(input.reshape(mode.rows, -1, input.shape[-1]), mode.of(weight).transpose(1, 2))
    return (y if bias is None else y + mode.of(bias)[:, None]).view(*input.shape[:-1], len(weight))


def _group_norm(
    mode: PerRow,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    y = F.group_norm(input, num_groups, None, None, eps)
    for parameter, combine in ((weight, torch.mul), (bias, torch.add)):
        if parameter is not None:
            own = mode.of(parameter).repeat_interleave(len(input) // mode.rows, 0)
            y = combine(y, own.view(*own.shape, *[1] * (input.ndim - 2)))
    return y


_LAYERS: dict[Any, Callable[..., Tensor]] = {
    torch.conv2d: _convolution,
    F.linear: _linear,
    F.group_norm: _group_norm,
}
