"""A convolution as a product of matrices: its inputs' windows and its outputs' gradients, channels last."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Windows:
    """Windows are views of the padded input until somebody asks for some, so that few are in memory at once.

    Args:
        module: one that :meth:`fit` says yes to.
        x: its input, ``(n, c, *size)``.
        g: its output's gradient, ``(n, o, *size')``.

    Attributes:
        shape: ``(n, t, i)``: records, positions of the output, entries of a window.
    """

    def __init__(self, module: nn.Conv1d | nn.Conv2d, x: Tensor, g: Tensor) -> None:
        flat = x.dim() == 3
        self.x, self.g = (x.unsqueeze(2), g.unsqueeze(2)) if flat else (x, g)
        self.stride, self.padding, self.dilation, self.kernel = (
            ((first, *v) if flat else tuple(v))
            for first, v in ((1, module.stride), (0, _padding(module)), (1, module.dilation), (1, module.kernel_size))
        )
        channels = self.x.shape[1]
        self.out = tuple(self.g.shape[2:])
        self.weight = (self.g.shape[1], channels, *self.kernel)
        self.shape = len(self.x), math.prod(self.out), math.prod(self.kernel) * channels

    @staticmethod
    def fit(module: nn.Module) -> bool:
        """Whether this is written for such a convolution: one group, zeros around."""
        return module.groups == 1 and module.padding_mode == "zeros" and _padding(module) is not None  # pyright: ignore

    def inputs(self, start: int, stop: int) -> Tensor:
        """The windows of records ``start`` to ``stop``, ``(m, t, i)``."""
        down, right = self.padding
        x = F.pad(self.x[start:stop].permute(0, 2, 3, 1), (0, 0, right, right, down, down)).contiguous()
        n, h, w, c = x.stride()
        strides = (n, h * self.stride[0], w * self.stride[1], h * self.dilation[0], w * self.dilation[1], c)
        shape = (len(x), *self.out, *self.kernel, x.shape[3])
        return x.as_strided(shape, strides).reshape(len(x), *self.shape[1:])

    def gradients(self, start: int, stop: int) -> Tensor:
        """The outputs' gradients of the same, ``(m, t, o)``."""
        return self.g[start:stop].permute(0, 2, 3, 1).reshape(stop - start, self.shape[1], -1)

    def weights(self, gradient: Tensor) -> Tensor:
        """``(o, i)``, in the order of windows, as ``(o, c, *kernel)``."""
        return gradient.view(len(gradient), *self.kernel, -1).permute(0, 3, 1, 2)

    def sums(self, factor: Tensor) -> Tensor:
        """The weights' gradient summed over records times ``factor``, ``(n,)``: ``(o, c, *kernel)``."""
        g = self.g * factor[:, None, None, None]
        like = self.x.new_empty(1).expand(self.weight)
        mask = (False, True, False)
        back = torch.ops.aten.convolution_backward
        _, weight, _ = back(g, self.x, like, None, self.stride, self.padding, self.dilation, False, [0, 0], 1, mask)
        return weight


def _padding(module: nn.Module) -> tuple[int, ...] | None:
    """On each side, by dimension; ``None`` where it differs between the sides."""
    padding = module.padding
    if padding == "valid":
        return (0,) * len(module.kernel_size)  # pyright: ignore
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]  # pyright: ignore
        return None if any(t % 2 for t in total) else tuple(t // 2 for t in total)
    return tuple(padding)  # pyright: ignore
