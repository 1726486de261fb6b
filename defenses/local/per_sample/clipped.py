"""Sums of clipped gradients of batches of any size."""

from typing import Literal

import torch
from torch import Tensor, nn

from privbench.defenses.local.per_sample.choice import Name, choose, make
from privbench.defenses.local.per_sample.engine import Loss, Units
from privbench.defenses.local.per_sample.memory import units_at_once


class ClippedSum:
    """Adds clipped sums to a model's gradients, a part of a batch at a time.

    Args:
        model: whose trainable parameters have their ``grad``.
        loss: of a batch; it separates by record.
        name: of the engine; ``auto`` measures at the first batch that isn't empty.
        memory: GiB that parts are cut for.
    """

    def __init__(self, model: nn.Module, loss: Loss, name: Name | Literal["auto"] = "auto", memory: float = 1.0):
        self.model, self.loss, self.name, self.memory = model, loss, name, memory
        self.engine = None if name == "auto" else make(name, model, loss)
        self.at_once: dict[int, int] = {}

    def add(self, units: Units, clip: float) -> Tensor:
        """Add ``sum_u min(1, clip / norm_u) * gradient_u`` to the parameters' ``grad``.

        A unit whose gradient isn't finite adds nothing.

        Returns:
            The norms before clipping, ``(n,)``.

        Raises:
            ConfigError: if a named engine can't do this model.
        """
        if len(units) == 0:
            return torch.zeros(0, device=units.x.device)
        if self.engine is None:
            self.name = choose(self.model, self.loss, units, self.memory)
            self.engine = make(self.name, self.model, self.loss)
        if units.views not in self.at_once:
            one = units.take(torch.zeros(1, dtype=torch.int64, device=units.x.device))
            self.at_once[units.views] = units_at_once(self.model, self.loss, one, self.engine.name, self.memory)
        norms = [self.engine.add(part, clip) for part in units.split(self.at_once[units.views])]
        return torch.cat(norms)
