"""R-GAP: records through chains of layers, what is undetermined, and what is refused by name."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from privbench.attacks.leakage.activations import INVERSES, undo
from privbench.attacks.leakage.attack import AttackFailed
from privbench.attacks.leakage.head import slopes
from privbench.attacks.leakage.rgap import RGAP
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.view import Known
from privbench.benchmarks.inversion.attacks import make_attack
from privbench.benchmarks.measures import images
from privbench.benchmarks.tasks.models import CNN6, make
from privbench.benchmarks.tasks.sources import MITBIH, Digits
from privbench.benchmarks.tasks.task import Split


def small(act: type[nn.Module] = nn.LeakyReLU, bias: bool = False, classes: int = 10, head: bool = True) -> nn.Module:
    """Two convolutions and two linear layers on 28x28."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, 2, 2, bias=bias),
        act(),
        nn.Conv2d(6, 24, 3, 2, 1, bias=bias),
        act(),
        nn.Flatten(),
        nn.Linear(1176, 32, bias=bias),
        act(),
        nn.Linear(32, classes, bias=head),
    )


def invert(s, attack=None, vector=None, **changes):
    view = s.view() if vector is None else s.view(updates={0: s.update(vector)})
    seen = replace(s.observation(view), **changes)
    return (attack or RGAP()).reconstruct(view, seen, torch.Generator().manual_seed(0))


def psnr(s, found) -> float:
    x, original = (images.to_raw(v, s.public.mean, s.public.std) for v in (found.x, s.truth.x))
    return float(images.psnr(x, original).min())


@pytest.mark.golden
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("act", [nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.Softplus])
def test_a_digit_through_two_convolutions(scene, act, bias):
    s = scene(small(act, bias))
    found = invert(s)
    assert psnr(s, found) > 60
    assert found.y.tolist() == s.truth.y.tolist()
    assert "undetermined" not in found.engine


@pytest.mark.golden
def test_zhus_lenet_is_solved(scene):
    """The model on which attacks by optimisation reach about 25 dB."""
    s = scene()
    assert psnr(s, invert(s)) > 60


@pytest.mark.parametrize("classes", [10, 2])
def test_a_last_layer_without_a_bias(scene, digits, classes):
    """The scale between its input and its slopes follows from the loss; of two classes with a second solution."""
    one = torch.nonzero(digits.y < 2).flatten()[:1]
    s = scene(small(classes=classes, head=False), digits.take(one))
    s = replace(s, public=replace(s.public, classes=classes))
    found = invert(s)
    assert psnr(s, found) > 60
    assert found.y.tolist() == s.truth.y.tolist()


def test_a_clip_changes_nothing_where_the_last_layer_has_a_bias(scene):
    s = scene(small())
    assert psnr(s, invert(s, None, 0.01 * s.gradient, known=Known(clip=0.1))) > 60
    with pytest.raises(AttackFailed, match="though each layer's constraints agree: a clip or a scale isn't published"):
        invert(s, None, 0.01 * s.gradient)


@pytest.mark.golden
@pytest.mark.parametrize("architecture", [CNN6(), CNN6(bias=True, activation="tanh")], ids=lambda a: a.activation)
def test_the_papers_model_on_small_digits(scene, architecture):
    data = Digits().load(None)
    s = scene(make(architecture, data.spec, 0), data.train.take(torch.arange(1)))
    found = invert(s)
    assert psnr(s, found) > 60
    assert found.engine.startswith("R-GAP; 13: 0 + 5120 constraints on 512, residual")


@pytest.mark.golden
def test_a_heartbeat_through_convolutions_over_time(scene):
    data = MITBIH(classes=("N", "S", "V")).load(None)
    truth = Split(data.train.x[:1], data.train.y[:1])
    s = scene(make(CNN6(), data.spec, 0), truth, mean=data.spec.mean, std=data.spec.std)
    s = replace(s, public=replace(s.public, classes=3))
    found = invert(s)
    assert float((found.x - truth.x).abs().max()) < 1e-2
    assert found.y.tolist() == truth.y.tolist()


def test_what_is_undetermined_is_said(scene):
    """One channel of stride 2 after another: 196 + 9 constraints on 784 unknowns in the first."""
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 1, 3, 2, 1), nn.Sigmoid(), nn.Conv2d(1, 8, 5, 2, 2), nn.Sigmoid()]
    s = scene(nn.Sequential(*body, nn.Flatten(), nn.Linear(392, 10)))
    found = invert(s)
    # All gradients agree, and the input isn't known all the same.
    assert found.objective < 1e-6
    assert psnr(s, found) < 30
    assert "0: 196 + 9 constraints on 784, 5" in found.engine
    assert "undetermined" in found.engine


def test_noise_is_a_failure_by_name(scene):
    s = scene(small())
    noise = torch.randn(s.gradient.shape, generator=torch.Generator().manual_seed(0))
    noisy = s.gradient + 0.05 * s.gradient.norm() / noise.norm() * noise
    with pytest.raises(AttackFailed, match="constraints contradict each other most at"):
        invert(s, None, noisy)
    s = scene(small(head=False))
    # Of a cross entropy, a shorter gradient is that of no input: the label's slope would be too small for its logit.
    with pytest.raises(AttackFailed, match="no input of the last layer, '7', which has no bias, explains its gradient"):
        invert(s, None, 0.1 * s.gradient)


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 2, 3), nn.Linear(1352, 10)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)).flatten(1))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.flat, self.inner, self.last = nn.Flatten(), nn.Linear(784, 784), nn.Linear(784, 10)

    def forward(self, x):
        return self.last(self.inner(self.inner(self.flat(x))))


def flat(*layers: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, 10))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (flat(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), width=338), "'1' is MaxPool2d"),
        (flat(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), width=1352), "'1' is BatchNorm2d"),
        (flat(nn.Conv2d(1, 2, 3), nn.GELU(), width=1352), "'1' is GELU"),
        (flat(nn.Conv2d(1, 2, 3, padding="same"), width=1568), "the layer '0' .* padding='same'"),
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Tanh()), "ends in '2', Tanh"),
        (flat(nn.Conv2d(1, 2, 3).requires_grad_(False), width=1352), "'0' .* trains no weight"),
        (Functional(), "no chain of modules: something happens between 'first' and 'last'"),
        (Twice(), "'inner' is used more than once"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_is_no_chain_is_refused_by_name(scene, model, reason):
    with pytest.raises(AttackFailed, match=reason):
        invert(scene(model))


def test_batches_and_large_layers_are_refused(scene):
    with pytest.raises(AttackFailed, match="for a single record, not for 3"):
        invert(scene(small(), 3))
    with pytest.raises(AttackFailed, match="'0' has 784 unknowns, more than most_unknowns=500"):
        invert(scene(small()), RGAP(most_unknowns=500))


def test_a_dead_layer_is_a_failure_by_name(scene):
    model = small(nn.ReLU, bias=True)
    with torch.no_grad():
        model.get_parameter("2.bias").fill_(-1e4)
    with pytest.raises(AttackFailed, match="no gradient reaches the layer '2'"):
        invert(scene(model))


def test_activations_in_place_are_followed(scene):
    s = scene(
        nn.Sequential(nn.Conv2d(1, 6, 5, 2, 2), nn.LeakyReLU(0.2, inplace=True), nn.Flatten(), nn.Linear(1176, 10))
    )
    assert psnr(s, invert(s)) > 60


@pytest.mark.parametrize("kind", list(INVERSES), ids=lambda k: k.__name__)
def test_activations_are_undone(kind):
    z = torch.linspace(-4, 4, 101, dtype=torch.float64, requires_grad=True)
    module = kind()
    a = module(z)
    found, derivative = undo(module, a.detach())
    expected = torch.autograd.grad(a.sum(), z)[0]
    assert torch.allclose(derivative, expected)
    known = derivative != 0
    assert torch.allclose(found[known], z.detach()[known])


def test_slopes_are_those_of_the_loss(scene):
    s = scene()
    z, y = torch.randn(3, 10), torch.tensor([1, 0, 9])
    assert torch.allclose(slopes(s.public, z, y), z.softmax(1) - F.one_hot(y, 10), atol=1e-6)


def test_it_can_be_named_on_a_dump():
    assert make_attack("rgap", {"tolerance": 0.5}) == RGAP(tolerance=0.5)


@pytest.mark.parametrize(("field", "value"), [("tolerance", 0.0), ("most_unknowns", 0)])
def test_bad_settings(field, value):
    with pytest.raises(ConfigError, match=field):
        RGAP(**{field: value})
