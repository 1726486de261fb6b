"""Models: parameter counts, shapes, initialisation, and gradients of single records."""

from itertools import product

import pytest
import torch
from opacus import GradSampleModule
from torch import nn

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.tasks import models
from privbench.benchmarks.tasks.models import make
from privbench.benchmarks.tasks.task import Domain, Spec


def spec(domain: Domain, *shape: int, classes: int = 10) -> Spec:
    return Spec("test", shape, tuple(map(str, range(classes))), torch.zeros(1), torch.ones(1), domain)


def show(value: object) -> str:
    return f"{value.domain}{value.shape}" if isinstance(value, Spec) else str(value)


MNIST, DIGITS, CIFAR = spec("image", 1, 28, 28), spec("image", 1, 8, 8), spec("image", 3, 32, 32)
XRAY, BEAT, TABLE = spec("image", 1, 64, 64, classes=2), spec("signal", 1, 180, classes=3), spec("table", 22, classes=2)


@pytest.mark.parametrize(
    ("architecture", "inputs", "parameters"),
    [
        (models.SmallCNN(), MNIST, 63_786),
        (models.SmallCNN(activation="tanh"), DIGITS, 17_706),
        (models.TanhCNN(), MNIST, 26_010),
        (models.TanhCNN(norm="group", weight_standardisation=True), MNIST, 26_106),
        (models.LogisticRegression(), MNIST, 7_850),
        (models.LogisticRegression(), TABLE, 46),
        (models.MLP(), TABLE, 22 * 64 + 64 + 64 * 2 + 2),
        (models.MLP((8, 4)), BEAT, 180 * 8 + 8 + 36 + 15),
        # The authors' code on CIFAR-100: 912 + 3612 + 3612 + 768 * 100 + 100.
        (models.LeNet(), spec("image", 3, 32, 32, classes=100), 85_036),
        (models.LeNet(), MNIST, 312 + 3612 + 3612 + 588 * 10 + 10),
        (models.LeNet(), DIGITS, None),
        # breaching's copy of R-GAP's model has 154,266.
        (models.CNN6(), CIFAR, 154_266),
        (models.CNN6(bias=True), BEAT, None),
        # breaching's ConvNet of width 64 on CIFAR-10 has 2,904,970 with batch normalisation.
        (models.ConvNet(norm="batch"), CIFAR, 2_904_970),
        (models.ConvNet(width=4, norm="group"), MNIST, None),
        (models.SignalCNN(), BEAT, 30_531),
        (models.ResNet18(), XRAY, None),
        (models.ResNet18(norm="batch"), DIGITS, None),
        (models.ResNet18(), CIFAR, 11_173_962),
        (models.ResNet20(), CIFAR, 272_474),
        (models.ResNet20(width=4, norm="batch"), CIFAR, 4_327_754),
    ],
    ids=show,
)
def test_logits_and_parameters(architecture, inputs, parameters):
    model = make(architecture, inputs, 0)
    assert model(torch.randn(2, *inputs.shape)).shape == (2, len(inputs.classes))
    if parameters is not None:
        assert sum(p.numel() for p in model.parameters()) == parameters


def test_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = make(models.SmallCNN(), MNIST, 7)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    again, other = make(models.SmallCNN(), MNIST, 7), make(models.SmallCNN(), MNIST, 8)
    pairs = list(zip(one.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) and not torch.equal(a, c) for a, b, c in pairs)


def test_zhu_initialisation_is_uniform():
    weights = torch.cat([p.flatten() for p in make(models.LeNet(), CIFAR, 0).parameters()])
    assert 0.49 < weights.abs().max() <= 0.5
    assert weights.std().item() == pytest.approx(1 / 12**0.5, rel=0.02)
    default = torch.cat([p.flatten() for p in make(models.LeNet("default"), CIFAR, 0).parameters()])
    assert default.std() < 0.1


def test_resnet_is_torchvisions():
    """Same parameter names and, with the same weights, the same result."""
    from torchvision.models import resnet18

    theirs = resnet18(num_classes=10).eval()
    inputs = spec("image", 3, 64, 64)
    ours = make(models.ResNet18(norm="batch"), inputs, 0).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("architecture", "inputs"),
    [
        (models.LeNet(), DIGITS),
        (models.SmallCNN(), DIGITS),
        (models.MLP(), TABLE),
        (models.LogisticRegression(), TABLE),
        (models.ConvNet(width=2, norm="group"), spec("image", 1, 9, 9)),
        (models.SignalCNN(), BEAT),
        (models.ResNet18(), DIGITS),
    ],
    ids=show,
)
@pytest.mark.filterwarnings("ignore:Full backward hook")  # Opacus' inputs need no gradients
def test_gradients_of_single_records(architecture, inputs):
    """Opacus' hooks give the gradient that each record has on its own."""
    model = make(architecture, inputs, 0)
    x, y = torch.randn(3, *inputs.shape), torch.tensor([0, 1, 1])
    model.zero_grad()
    nn.functional.cross_entropy(model(x[2:]), y[2:]).backward()
    alone = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    sampled = GradSampleModule(model, loss_reduction="sum")
    nn.functional.cross_entropy(sampled(x), y, reduction="sum").backward()
    for single, parameter in zip(alone, sampled.parameters(), strict=True):
        assert torch.allclose(parameter.grad_sample[2], single, atol=1e-4, rtol=1e-3)  # type: ignore[attr-defined]
    sampled.to_standard_module()


@pytest.mark.parametrize(
    ("architecture", "inputs"),
    [
        *product([models.LeNet(), models.SmallCNN(), models.ConvNet(), models.ResNet18()], [TABLE, BEAT]),
        *product([models.SignalCNN()], [TABLE, MNIST, spec("signal", 1, 7)]),
        (models.ConvNet(), DIGITS),
        (models.SmallCNN(), spec("image", 1, 3, 28)),
    ],
    ids=show,
)
def test_inputs_that_do_not_fit_are_refused(architecture, inputs):
    with pytest.raises(ConfigError, match=f"model={type(architecture).__name__}: .*takes: "):
        make(architecture, inputs, 0)


def test_a_users_own_module():
    model = make(models.Custom(lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))), DIGITS, 0)
    assert model.training
    for factory in (lambda: nn.Linear(64, 10), lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 9)), lambda: 3):
        with pytest.raises(ConfigError, match=r"^model="):
            make(models.Custom(factory), DIGITS, 0)


@pytest.mark.parametrize(
    "build",
    [
        lambda: models.MLP(()),
        lambda: models.MLP((0,)),
        lambda: models.SmallCNN(width=0),
        lambda: models.TanhCNN(width=0),
        lambda: models.TanhCNN(hidden=0),
        lambda: models.TanhCNN(weight_standardisation=True),
        lambda: models.SmallCNN(hidden=0),
        lambda: models.SignalCNN(width=0),
        lambda: models.ConvNet(width=0),
    ],
)
def test_bad_settings_are_refused(build):
    with pytest.raises(ConfigError):
        build()


def test_standardised_weights_have_no_scale_and_the_same_parameters():
    plain = make(models.TanhCNN(norm="group"), MNIST, 0)
    model = make(models.TanhCNN(norm="group", weight_standardisation=True), MNIST, 0)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    x = torch.randn(2, 1, 28, 28)
    before = model(x)
    assert not torch.allclose(before, plain(x))
    with torch.no_grad():
        next(model.parameters()).mul_(3).add_(0.2)
    torch.testing.assert_close(model(x), before, rtol=1e-3, atol=1e-4)
