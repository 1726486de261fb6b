"""Every way of computing clipped sums against one backward pass a unit, in float64."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privbench.benchmarks.tasks.models import ResNet20, make
from privbench.benchmarks.tasks.task import Spec
from privbench.defenses.local.per_sample import ENGINES, BookKeeping, ClippedSum, Units, Unsupported, Vmap

CLIP = 0.7


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


class InPlace(nn.Module):
    """As torchvision's blocks are: what a layer gave is changed in place afterwards."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        identity = F.relu(self.first(x), inplace=True)
        out = self.second(identity)
        out += identity
        return self.last(F.relu_(out).mean((2, 3)))


class Standardised(nn.Conv2d):
    """A layer that nobody wrote a rule for."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w / (w.square().sum((1, 2, 3), keepdim=True).sqrt() + 1e-3), self.bias, padding=1)


class Shared(nn.Module):
    """One layer that is used twice."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


class Loose(nn.Module):
    """A parameter that lies beside layers."""

    def __init__(self):
        super().__init__()
        self.scale, self.last = nn.Parameter(torch.tensor(1.5)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x * self.scale)


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3, bias=False))
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    return model


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, (3, 5), stride=(2, 1), padding=(1, 2)),
        nn.Tanh(),
        nn.Conv2d(4, 4, 3, dilation=2, padding="same"),
        nn.GroupNorm(2, 4),
        nn.Conv2d(4, 6, 2, bias=False),
        nn.Conv2d(6, 6, 3, groups=3, padding=1, padding_mode="reflect"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def wide() -> nn.Module:
    """Convolutions whose gradients are too large to keep: by ghost norm, and by unfolding."""
    layers = [nn.Conv2d(2, 64, 3, stride=4), nn.ReLU(), nn.Conv2d(64, 64, 2), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(nn.Conv2d(2, 2, 1), *layers, nn.Linear(64, 3))


SIGNAL = [nn.Conv1d(2, 4, 3, padding=1, stride=2), nn.GroupNorm(1, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)]
WORDS = [nn.Linear(8, 5), nn.LayerNorm(5), nn.Linear(5, 4), nn.Flatten(), nn.Linear(24, 3)]
MODELS = {
    "dense": (lambda: nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)), (8,)),
    "frozen": (frozen, (8,)),
    "words": (lambda: nn.Sequential(*WORDS), (6, 8)),
    "signal": (lambda: nn.Sequential(*SIGNAL), (2, 8)),
    "convolutions": (convolutions, (2, 7, 6)),
    "wide": (wide, (2, 9, 9)),
    "in place": (InPlace, (2, 5, 5)),
    "no rule": (lambda: nn.Sequential(Standardised(2, 3, 3), nn.Flatten(), nn.Linear(75, 3)), (2, 5, 5)),
    "shared": (Shared, (8,)),
    "loose": (Loose, (8,)),
}
UNSEEN = ("shared", "loose")
"""What book-keeping says no to."""


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name][0]().double()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    return model


def units(name: str, n: int = 5, views: int = 1) -> Units:
    made = torch.Generator().manual_seed(1)
    x = torch.randn(n * views, *MODELS[name][1], generator=made, dtype=torch.float64) * 2
    y = torch.randint(0, 3, (n * views,), generator=made)
    return Units(x, y, views)


def expected(model: nn.Module, batch: Units) -> tuple[Tensor, Tensor]:
    """Norms and clipped sum, by autograd alone."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    norms, total = [], torch.zeros((), dtype=torch.float64)
    for u in range(len(batch)):
        own = range(u * batch.views, (u + 1) * batch.views)
        value = torch.stack([loss(model, (batch.x[i : i + 1], batch.y[i : i + 1])) for i in own]).mean()
        g = torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])
        norms.append(g.norm())
        total = total + g * min(1.0, CLIP * (1 - 1e-5) / float(g.norm()))
    return torch.stack(norms).detach(), total


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad and p.grad is not None])


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("engine", ENGINES)
def test_norms_and_sum_are_autograds(engine, name, views):
    model, batch = built(name), units(name, views=views)
    if engine == "book_keeping" and name in UNSEEN:
        with pytest.raises(Unsupported):
            BookKeeping(model, loss).add(batch, CLIP)
        return
    wanted, total = expected(model, batch)
    assert float(wanted.max()) > CLIP, "something is clipped"
    norms = ENGINES[engine](model, loss).add(batch, CLIP)
    torch.testing.assert_close(norms.double(), wanted, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(flat(model), total, rtol=1e-6, atol=1e-9)
    assert all(p.requires_grad for p in model.parameters()) or name == "frozen"
    ENGINES[engine](model, loss).add(batch, CLIP)
    torch.testing.assert_close(flat(model), 2 * total, rtol=1e-6, atol=1e-9, msg="it adds")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_residual_network_with_group_norm(engine):
    spec = Spec("x", (3, 8, 8), ("a", "b", "c"), torch.zeros(3), torch.ones(3), "image")
    model = make(ResNet20(), spec, 0).double()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    batch = Units(torch.randn(3, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2]))
    wanted, total = expected(model, batch)
    torch.testing.assert_close(ENGINES[engine](model, loss).add(batch, CLIP).double(), wanted, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(flat(model), total, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e200])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_unit_that_is_not_finite_adds_nothing(engine, bad):
    model, batch = built("convolutions"), units("convolutions", views=2)
    rest = units("convolutions", views=2).take(torch.tensor([0, 1, 3, 4]))
    batch.x[4, 0, 2, 2] = bad
    norms = ENGINES[engine](model, loss).add(batch, CLIP)
    finite = torch.isfinite(norms)
    if bad != 1e200:
        assert finite.tolist() == [True, True, False, True, True]
        torch.testing.assert_close(flat(model), expected(model, rest)[1], rtol=1e-6, atol=1e-9)
    assert torch.isfinite(flat(model)).all()


def test_parts_give_the_same_sum():
    batch = units("convolutions", n=7)
    whole, parts = built("convolutions"), built("convolutions")
    ClippedSum(whole, loss, "book_keeping", memory=1.0).add(batch, CLIP)
    small = ClippedSum(parts, loss, "book_keeping", memory=1e-9)
    norms = small.add(batch, CLIP)
    assert small.at_once == {1: 1}
    assert len(norms) == 7
    torch.testing.assert_close(flat(whole), flat(parts), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
def test_an_empty_batch_adds_nothing(engine):
    model = built("dense")
    empty = units("dense").take(torch.zeros(0, dtype=torch.int64))
    assert len(ClippedSum(model, loss, engine).add(empty, CLIP)) == 0
    assert not flat(model).any()


def test_more_memory_takes_more_units():
    model, one = built("convolutions"), units("convolutions", n=1)
    from privbench.defenses.local.per_sample.memory import units_at_once

    some, more = (units_at_once(model, loss, one, "book_keeping", m) for m in (1e-3, 1e-2))
    assert 1 < some < more
    assert units_at_once(model, loss, one, "vmap", 1e-3) < some, "vmap holds every gradient"
    assert units_at_once(model, loss, one, "loop", 1e3) == 1


def test_dropout_draws_for_every_unit():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5), nn.Linear(64, 3)).double()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    one = units("dense", n=1)
    same = Units(one.x.repeat(2, 1), one.y.repeat(2))
    for engine in (BookKeeping, Vmap):
        norms = engine(model, loss).add(same, CLIP)
        assert norms[0] != norms[1]
