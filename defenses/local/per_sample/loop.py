"""One unit after another: no memory for more than one gradient, and right for whatever autograd can do."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from privbench.defenses.local.per_sample.engine import Loss, Units, factors, trainable


class Loop:
    """Every unit's gradient by a backward pass of its own."""

    name: ClassVar[str] = "loop"

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self.model, self.loss = model, loss
        self.parameters = list(trainable(model).values())

    def add(self, units: Units, clip: float) -> Tensor:
        norms = [self._one(unit, clip) for unit in units.split(1)]
        return torch.stack(norms) if norms else torch.zeros(0)

    def _one(self, unit: Units, clip: float) -> Tensor:
        loss = self.loss(self.model, (unit.x, unit.y))
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True)
        norm = torch.stack([g.norm() for g in gradients]).norm()
        if bool(torch.isfinite(norm)):
            factor = factors(norm, clip)
            for p, g in zip(self.parameters, gradients, strict=True):
                assert p.grad is not None
                p.grad.add_(g * factor)
        return norm.detach()
