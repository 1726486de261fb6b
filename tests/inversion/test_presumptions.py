"""What is presumed of inputs, labels and dump is checked, or said in a note."""

from typing import Any

import pytest
import torch
from torch import nn

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.inversion import invert

IMAGE = (1, 12, 12)
FAST: dict[str, Any] = {"settings": {"iterations": 1}}


def said(found, text: str) -> bool:
    return any(text in n for n in found.notes)


def test_standardised_inputs_without_mean_and_std_are_refused(client):
    x = (client.x - 0.3) / 0.05
    gradient = client.gradient(x=x)
    with pytest.raises(
        ConfigError, match=r"inputs.x=.*x \* std \+ mean is -5.98 to 14, 95% of it outside.*give the mean and std"
    ):
        invert(client.model, gradient, IMAGE, inputs=(x, client.y), **FAST)
    found = invert(client.model, gradient, IMAGE, inputs=(x, client.y), mean=0.3, std=0.05, **FAST)
    assert not said(found, "outside")
    found = invert(client.model, gradient, IMAGE, inputs=(x, client.y), force=True, **FAST)
    assert said(found, "are clamped")


def test_pixels_up_to_255_are_recognised(client):
    x = client.x * 255
    with pytest.raises(ConfigError, match=r"std=0.0039 for pixels up to 255"):
        invert(client.model, client.gradient(x=x), IMAGE, inputs=(x, client.y), **FAST)
    invert(client.model, client.gradient(x=x), IMAGE, inputs=(x, client.y), std=1 / 255, **FAST)


def test_a_little_overshoot_is_clamped_and_said(client):
    x = client.x * 1.02
    found = invert(client.model, client.gradient(x=x), IMAGE, inputs=(x, client.y), **FAST)
    assert said(found, "are clamped")


def test_signals_and_tables_have_any_range():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3))
    x, y = 40 * torch.randn(2, 5), torch.tensor([0, 2])
    nn.functional.cross_entropy(model(x), y).backward()
    gradient = [p.grad for p in model.parameters()]
    found = invert(model, gradient, (5,), inputs=(x, y), **FAST)
    assert not said(found, "[0, 1]")


def test_raw_pixels_are_presumed_aloud(client):
    gradient = client.gradient()
    assert said(invert(client.model, gradient, IMAGE, records=4, **FAST), "pixels are presumed raw")
    assert not said(invert(client.model, gradient, IMAGE, records=4, mean=0.5, std=0.5, **FAST), "presumed raw")


@pytest.mark.parametrize("inputs", [True, False])
@pytest.mark.parametrize("moved", [0.0, 0.1])
def test_a_state_dict_is_no_update(client, inputs, moved):
    known: dict[str, Any] = {"inputs": (client.x, client.y)} if inputs else {"records": 4}
    change = client.trained(0.1)
    after = {n: p.detach() + moved * 10 * c for (n, p), c in zip(client.model.named_parameters(), change, strict=True)}
    with pytest.raises(ConfigError, match=r"it is a state dict.*--before and --after"):
        invert(client.model, after, IMAGE, **known, **FAST)
    with pytest.raises(ConfigError, match="it is a state dict"):
        invert(client.model, [*after.values()], IMAGE, kind="update", learning_rate=0.1, **known, **FAST)


def test_an_update_from_zero_weights_is_one():
    model = nn.Sequential(nn.Linear(5, 3))
    for p in model.parameters():
        nn.init.zeros_(p)
    x, y = torch.randn(2, 5, generator=torch.Generator().manual_seed(7)), torch.tensor([0, 2])
    nn.functional.cross_entropy(model(x), y).backward()
    after = [-0.1 * p.grad for p in model.parameters() if p.grad is not None]
    found = invert(model, after, (5,), inputs=(x, y), kind="update", learning_rate=0.1, **FAST)
    assert found.diagnosis is not None
    assert found.diagnosis.verdict == "agrees"


@pytest.mark.parametrize("attack", ["idlg", "inverting_gradients", "linear"])
def test_what_explains_nothing_is_said_to(client, attack):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 32), nn.ReLU(), nn.Linear(32, 10))
    settings = {} if attack == "linear" else {"iterations": 30}
    noise = [torch.randn(p.shape) for p in model.parameters()]
    found = invert(model, noise, IMAGE, records=2, attack=attack, settings=settings)
    assert said(found, "they are no reconstruction")
    nn.functional.cross_entropy(model(client.x[:1]), client.y[:1]).backward()
    found = invert(model, [p.grad for p in model.parameters()], IMAGE, attack=attack, settings=settings)
    assert not said(found, "they are no reconstruction")


def test_labels_that_contradict_the_inputs_are_refused(client):
    known: dict[str, Any] = {"inputs": (client.x, client.y), **FAST}
    with pytest.raises(ConfigError, match=r"labels=\[9, 9, 9, 9\]: those of inputs.y, \[3, 1, 4, 1\], in any order"):
        invert(client.model, client.gradient(), IMAGE, labels=[9, 9, 9, 9], **known)
    invert(client.model, client.gradient(), IMAGE, labels=[1, 3, 1, 4], **known)
    invert(client.model, client.gradient(), IMAGE, labels=[9, 9, 9, 9], force=True, **known)


@pytest.mark.parametrize("factor", [1e-25, 1e20])
def test_dumps_whose_squares_leave_float32_are_not_attacked(client, factor):
    with pytest.raises(ConfigError, match=r"a gradient of usual size, its norm is \d"):
        invert(client.model, [factor * g for g in client.gradient()], IMAGE, records=4, **FAST)
