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
        values = {name: p.detach() for name, p in self.parameters.items()}
        gradients = vmap(grad(self._loss), in_dims=(None, 0, 0), randomness="different")(values, x, y)
        norms = torch.stack([g.reshape(n, -1).norm(dim=1) for g in gradients.values()]).norm(dim=0)
        factor = factors(norms, clip)
        broken = not bool(torch.isfinite(norms).all())
        for name, p in self.parameters.items():
            g = gradients.pop(name)
            assert p.grad is not None
            p.grad.add_(torch.tensordot(factor, g.nan_to_num_(0.0, 0.0, 0.0) if broken else g, dims=1))
        return norms

    def _loss(self, values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return self.loss(lambda inputs: functional_call(self.model, values, (inputs,)), (x, y))
