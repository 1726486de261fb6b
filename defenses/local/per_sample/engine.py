"""Sums of clipped gradients: what every way of computing them has in common."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

Loss = Callable[[Callable[[Tensor], Tensor], tuple[Tensor, Tensor]], Tensor]
"""A batch's mean loss; it separates by record."""


class Unsupported(Exception):
    """This way can't compute the gradients of this model; another can."""


@dataclass(frozen=True)
class Units:
    """A batch of units, each of which is clipped as a whole: ``views`` consecutive records are one unit.

    A unit's gradient is the mean over its records. A unit is a record, a record under several augmentations, or some
    records of a patient.

    Args:
        x: ``(n * views, ...)``.
        y: ``(n * views,)``.
        views: records a unit.
    """

    x: Tensor
    y: Tensor
    views: int = 1

    def __len__(self) -> int:
        return len(self.y) // self.views

    def take(self, units: Tensor) -> "Units":
        """Those units, ``(m,)`` int64."""
        index = (units[:, None] * self.views + torch.arange(self.views, device=units.device)).flatten()
        return Units(self.x[index], self.y[index], self.views)

    def split(self, size: int) -> list["Units"]:
        """Parts of at most ``size`` units."""
        if len(self) <= size:
            return [self] if len(self) else []
        parts = zip(self.x.split(size * self.views), self.y.split(size * self.views), strict=True)
        return [Units(x, y, self.views) for x, y in parts]


class Engine(Protocol):
    """A way to add sums of clipped gradients, for one model and loss."""

    name: ClassVar[str]

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        """
        Args:
            model: whose trainable parameters have their ``grad``.
            loss: of a batch.

        Raises:
            Unsupported: if it can't be done for the model.
        """
        ...

    def add(self, units: Units, clip: float) -> Tensor:
        """Add ``sum_u min(1, clip / norm_u) * gradient_u`` to the parameters' ``grad``.

        Returns:
            The norms before clipping, ``(n,)``. A unit whose gradient isn't finite adds nothing.

        Raises:
            Unsupported: if it turns out that it can't be done for the model.
        """
        ...


def factors(norms: Tensor, clip: float) -> Tensor:
    """``min(1, C / norm)``, ``(n,)``; 0 where the norm isn't finite."""
    # Just below C, since the norm of a clipped float32 gradient can come out at 1.000004 C.
    factor = (clip * (1 - 1e-5) / norms.clamp(min=1e-12)).clamp(max=1.0)
    return torch.where(torch.isfinite(norms), factor, torch.zeros_like(factor))


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
