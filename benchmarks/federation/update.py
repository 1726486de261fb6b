"""What travels: models and updates as flat vectors with a layout."""

from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

Kind = Literal["gradient", "update"]
PIECE = 1 << 18
"""Coordinates that are worked on at once in float64: 2 MiB, which the allocator hands out again. A larger copy takes
new pages from the kernel each time, which cost six times the arithmetic."""


@dataclass(frozen=True)
class Layout:
    """Where each tensor of a model lies in a flat vector: parameters first, then buffers.

    Flat vectors make aggregation rules functions of an ``(n, d)`` matrix, a clip the norm of one vector and a
    message one array. Integer buffers (BatchNorm's ``num_batches_tracked``) don't travel: a counter has no mean, and
    would be most of a vector's norm.

    Args:
        names: tensor names as in ``state_dict``.
        shapes: their shapes, in the same order.
        parameters: how many of them are trainable parameters (they come first).
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    parameters: int

    @classmethod
    def of(cls, model: nn.Module) -> "Layout":
        params = {n: p for n, p in model.named_parameters() if p.requires_grad}
        # What is neither trained nor a parameter is state that training changes (BatchNorm's running statistics).
        buffers = dict(model.named_buffers())
        rest = {n: b for n, b in model.state_dict().items() if n in buffers and b.is_floating_point()}
        every = {**params, **rest}
        return cls(tuple(every), tuple(tuple(t.shape) for t in every.values()), len(params))

    @property
    def size(self) -> int:
        """Length d of the vector."""
        return sum(prod(s) for s in self.shapes)

    @property
    def buffers(self) -> tuple[str, ...]:
        """Names of the float buffers that travel with the parameters."""
        return self.names[self.parameters :]

    @property
    def trainable(self) -> int:
        """How many leading entries of the vector are parameters; the rest are buffers."""
        return sum(prod(s) for s in self.shapes[: self.parameters])

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """Named views (no copy) into ``vector`` of shape ``(size,)``."""
        parts = torch.split(vector, [prod(s) for s in self.shapes])
        return {n: p.view(s) for n, s, p in zip(self.names, self.shapes, parts, strict=True)}

    def flatten(self, tensors: dict[str, Tensor]) -> Tensor:
        """The inverse of :meth:`views`: a new float32 vector of shape ``(size,)``."""
        return torch.cat([tensors[n].detach().reshape(-1).to(torch.float32) for n in self.names])

    def read(self, model: nn.Module) -> Tensor:
        """The model's state as a new vector of shape ``(size,)``."""
        return self.flatten({**dict(model.named_parameters()), **dict(model.named_buffers())})

    @torch.no_grad()
    def write(self, vector: Tensor, model: nn.Module) -> None:
        """Copy ``vector`` of shape ``(size,)`` into the model; integer buffers stay."""
        own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name, value in self.views(vector).items():
            own[name].copy_(value)


def length(vector: Tensor) -> float:
    """The L2 norm of a vector ``(d,)``, accumulated in float64."""
    parts = [torch.linalg.vector_norm(part, dtype=torch.float64) for part in vector.split(PIECE)]
    return float(torch.linalg.vector_norm(torch.stack(parts)))


@dataclass
class Update:
    """What one client computed, or what a rule made of many.

    Args:
        vector: shape ``(layout.size,)``, float32. ``kind="update"``: the model after local training minus the model
            received. ``kind="gradient"``: the loss's gradient, averaged over local steps; buffers are differences.
        layout: names and shapes.
        kind: the sign and unit of ``vector``.
        records: how many training records stand behind it, as the client claims (weights are made of it).
        extras: further tensors that are summed under the same protection (clip indicators).
        client: who sent it, as the channel knows and not as the sender says; ``None`` for what was made of many.
    """

    vector: Tensor
    layout: Layout
    kind: Kind
    records: int
    extras: dict[str, Tensor] = field(default_factory=dict)
    client: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A tensor pickles through torch.save, an array as its bytes: ten times as fast for a worker's answer.
        return {**self.__dict__, "vector": self.vector.numpy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, vector=torch.from_numpy(state["vector"]))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Named views into ``vector``."""
        return self.layout.views(self.vector)
