"""A user's small models, outside the package."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def convolutional(norm: bool = False) -> nn.Module:
    """10 classes, images 1x12x12; two hidden layers of equal shape."""
    torch.manual_seed(1)
    batch_norm = nn.BatchNorm2d(6)
    body = [nn.Conv2d(1, 6, 5, 2, 2), batch_norm if norm else nn.Identity(), nn.Sigmoid(), nn.Flatten()]
    model = nn.Sequential(*body, nn.Linear(216, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 10))
    if norm:
        statistics = dict(batch_norm.named_buffers())
        statistics["running_mean"].uniform_(-0.5, 0.5)
        statistics["running_var"].uniform_(0.5, 2)
    return model


@dataclass(frozen=True)
class Client:
    """A client of plain PyTorch: nothing here is the suite's."""

    model: nn.Module
    x: Tensor
    y: Tensor

    def gradient(self, x: Tensor | None = None, y: Tensor | None = None, mode="eval", loss=F.cross_entropy):
        x, y = self.x if x is None else x, self.y if y is None else y
        self.model.train(mode == "train")
        found = torch.autograd.grad(loss(self.model(x), y), list(self.model.parameters()))
        self.model.eval()
        return list(found)

    def trained(self, rate: float, steps: int = 1, decay: float = 0.0, parts: bool = False) -> list[Tensor]:
        """``w_after - w_before`` of SGD."""
        before = [p.detach().clone() for p in self.model.parameters()]
        optimiser = torch.optim.SGD(self.model.parameters(), lr=rate, weight_decay=decay)
        for k in range(steps):
            chosen = torch.arange(len(self.x)).tensor_split(steps)[k] if parts else slice(None)
            optimiser.zero_grad()
            F.cross_entropy(self.model(self.x[chosen]), self.y[chosen]).backward()
            optimiser.step()
        moved = [p.detach() - b for p, b in zip(self.model.parameters(), before, strict=True)]
        with torch.no_grad():
            for p, b in zip(self.model.parameters(), before, strict=True):
                p.copy_(b)
        return moved


@pytest.fixture
def client() -> Client:
    generator = torch.Generator().manual_seed(0)
    return Client(convolutional(), torch.rand(4, 1, 12, 12, generator=generator), torch.tensor([3, 1, 4, 1]))


@pytest.fixture
def normed() -> Client:
    generator = torch.Generator().manual_seed(0)
    return Client(convolutional(norm=True), torch.rand(4, 1, 12, 12, generator=generator), torch.tensor([3, 1, 4, 1]))
