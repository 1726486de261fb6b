"""All units' gradients at once, by ``torch.func``: for models whose layers book-keeping doesn't see through."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from privbench.defenses.local.per_sample.engine import Loss, Units, factors, trainable


class Vmap:
    """``vmap(grad(loss))``; holds every unit's whole gradient."""

    name: ClassVar[str] = "vmap"

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self.model, self.loss = model, loss
        self.parameters = trainable(model)

    def add(self, units: Units, clip: float) -> Tensor:
        n, views = len(units), units.views
        x, y = units.x.unflatten(0, (n, views)), units.y.unflatten(0, (n, views))
        weight = None if units.weight is None else units.weight.unflatten(0, (n, views))
        values = {name: p.detach() for name, p in self.parameters.items()}
        over = (None, 0, 0, None if weight is None else 0)
        gradients = vmap(grad(self._loss), in_dims=over, randomness="different")(values, x, y, weight)
        norms = torch.stack([g.reshape(n, -1).norm(dim=1) for g in gradients.values()]).norm(dim=0)
        factor = factors(norms, clip)
        broken = not bool(torch.isfinite(norms).all())
        for name, p in self.parameters.items():
            g = gradients.pop(name)
            assert p.grad is not None
            p.grad.add_(torch.tensordot(factor, g.nan_to_num_(0.0, 0.0, 0.0) if broken else g, dims=1))
        return norms

    def _loss(self, values: dict[str, Tensor], x: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        def model(inputs: Tensor) -> Tensor:
            return functional_call(self.model, values, (inputs,))

        if weight is None:
            return self.loss(model, (x, y))
        records = vmap(lambda a, b: self.loss(model, (a[None], b[None])), randomness="different")(x, y)
        return (weight * records).sum()
