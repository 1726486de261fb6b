"""One pass for many rows: each row's gradient and its derivative are what automatic differentiation finds alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from privbench.attacks.leakage import rows as module
from privbench.attacks.leakage.objectives import Cosine, Objective, SquaredDistance, Weighted
from privbench.attacks.leakage.rows import NoRows, PerRow, gradients

MODELS = {
    "strides": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 5, 2, 2), nn.Sigmoid(), nn.Conv2d(4, 6, 3, (1, 2), 1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 5)
    ),
    "dilation, no bias": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, dilation=2, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5, bias=False),
    ),
    "group normalisation": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    ),
}


def together(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    batch = x.flatten(0, 1), y.flatten()
    return gradients(
        lambda: F.cross_entropy(functional_call(model, parameters, (batch[0],)), batch[1]), PerRow(len(x), parameters)
    )


def alone(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    parts = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()), create_graph=True)
    return torch.cat([p.flatten() for p in parts])


@pytest.mark.parametrize("records", [1, 3])
@pytest.mark.parametrize("small", [0, 1e9])
@pytest.mark.parametrize("name", MODELS)
def test_rows_are_what_they_are_alone(name, small, records, monkeypatch):
    monkeypatch.setattr(module, "SMALL", small)
    torch.manual_seed(0)
    model = MODELS[name]().double()
    x = torch.randn(4, records, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, 5, (4, records))
    weights = torch.randn(4, sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    found = together(model, x, y)
    (slope,) = torch.autograd.grad((found * weights).sum(), x)
    for r in range(4):
        own = x[r].detach().requires_grad_()
        expected = alone(model, own, y[r])
        torch.testing.assert_close(found[r], expected)
        torch.testing.assert_close(slope[r], torch.autograd.grad((expected * weights[r]).sum(), own)[0])


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, padding="same"), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 3)],
)
def test_layers_without_such_a_pass_are_named(layer):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(NoRows, match="convolution"):
        together(model, torch.randn(2, 1, 3, 8, 8), torch.zeros(2, 1, dtype=torch.int64))


@pytest.mark.parametrize("objective", [SquaredDistance(), Cosine(), Weighted(Cosine(), torch.rand(50).double())])
def test_distances_by_row_are_the_single_ones(objective: Objective):
    torch.manual_seed(0)
    targets = torch.randn(3, 50, dtype=torch.float64)
    g = torch.randn(3, 50, dtype=torch.float64, requires_grad=True)
    values = torch.stack([objective(a, t) for a, t in zip(g, targets, strict=True)])
    found = objective.against(targets)(g)
    torch.testing.assert_close(found, values)
    scale = torch.tensor([1.0, 2.0, -3.0])
    expected = torch.autograd.grad((values * scale).sum(), g)[0]
    torch.testing.assert_close(torch.autograd.grad((found * scale).sum(), g)[0], expected)
