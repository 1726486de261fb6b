"""Published clipping, noise and pruning, in the diagnosis and in the attack."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.inversion import Diagnosis, DumpDiffers, invert

FAST: dict[str, Any] = {"settings": {"iterations": 1}}


def diagnosis(client, update, **given) -> Diagnosis:
    every: dict[str, Any] = {"inputs": (client.x, client.y), **FAST, **given}
    try:
        found = invert(client.model, update, client.x.shape[1:], **every).diagnosis
    except DumpDiffers as error:
        return error.diagnosis
    assert found is not None
    return found


def norm(tensors) -> float:
    return float(torch.cat([t.reshape(-1) for t in tensors]).norm())


def noisy(tensors, std, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [t + std * torch.randn(t.shape, generator=generator) for t in tensors]


def pruned(tensors, share):
    """The largest entries by magnitude."""
    every = torch.cat([t.reshape(-1) for t in tensors]).abs()
    least = every.sort().values[int(len(every) * share)]
    return [torch.where(t.abs() >= least, t, 0.0) for t in tensors]


@pytest.mark.parametrize(("factor", "text"), [(0.5, "below"), (1.0, "above")])
def test_a_clip_that_is_not_the_declared_one_is_named(client, factor, text):
    gradient = client.gradient()
    length = norm(gradient)
    declared = 0.8 * length
    found = diagnosis(client, [factor * g for g in gradient], clip=declared)
    assert [f.name for f in found.faults] == ["clip"]
    assert found.faults[0].setting["clip"] == pytest.approx(factor * length, rel=1e-3)
    assert f"{text} what a clip of" in str(found)
    right = {**found.faults[0].setting}
    assert diagnosis(client, [factor * g for g in gradient], **right).verdict == "agrees"


def test_a_clip_of_an_update(client):
    update = client.trained(0.5)
    known: dict[str, Any] = {"kind": "update", "learning_rate": 0.5}
    clipped = [0.3 * u for u in update]
    assert diagnosis(client, clipped, clip=0.3 * norm(update), **known).verdict == "agrees"
    found = diagnosis(client, clipped, clip=0.6 * norm(update), **known)
    assert [f.name for f in found.faults] == ["clip"]
    assert found.faults[0].setting["clip"] == pytest.approx(0.3 * norm(update), rel=1e-3)


@pytest.mark.parametrize("seed", [2, 3, 9])
def test_noise_does_not_make_other_images_agree(client, seed):
    gradient, flipped = client.gradient(), replace(client, x=client.x.flip(-1))
    count = sum(g.numel() for g in gradient)
    std = 0.25 * norm(gradient) / count**0.5
    dump = noisy(gradient, std, seed)
    # By its norm alone, within four standard deviations and rounding, the residual would pass.
    residual = norm([a - b for a, b in zip(dump, flipped.gradient(), strict=True)])
    assert residual < std * (count**0.5 + 4) + 1e-3 * norm(dump)
    assert diagnosis(flipped, dump, noise_std=std).verdict == "differs"
    assert diagnosis(client, dump, noise_std=std).verdict == "agrees"


def test_much_noise_makes_agreement_weak(client):
    gradient = client.gradient()
    std = 0.3 * norm(gradient) / sum(g.numel() for g in gradient) ** 0.5
    found = diagnosis(client, noisy(gradient, std), noise_std=std)
    assert (found.verdict, found.tolerance > 0.1) == ("agrees", True)
    assert "is consistent with the dump" in str(found)
    quiet = diagnosis(client, noisy(gradient, std / 10), noise_std=std / 10)
    assert (quiet.verdict, quiet.tolerance > 0.1) == ("agrees", False)
    assert "is the dump's" in str(quiet)


def test_the_right_images_agree_whatever_the_draw_of_noise(client):
    gradient = client.gradient()
    std = 0.3 * norm(gradient) / sum(g.numel() for g in gradient) ** 0.5
    for seed in range(20):
        assert diagnosis(client, noisy(gradient, std, seed), noise_std=std).verdict == "agrees"


def test_noise_does_not_hide_what_is_off(normed):
    gradient = normed.gradient(mode="train")
    std = 0.2 * norm(gradient) / sum(g.numel() for g in gradient) ** 0.5
    found = diagnosis(normed, noisy(gradient, std), noise_std=std)
    assert [f.name for f in found.faults] == ["mode"]
    found = diagnosis(normed, noisy([4 * g for g in normed.gradient()], 4 * std), noise_std=4 * std)
    assert [f.name for f in found.faults] == ["reduction"]


@pytest.mark.parametrize("factor", [1e-30, 1e-25, 1e25])
def test_very_small_and_very_large_dumps_are_factors(client, factor):
    found = diagnosis(client, [factor * g for g in client.gradient()])
    assert [f.name for f in found.faults] == ["scale"]
    assert found.error == pytest.approx(1 / factor if factor < 1 else 1, rel=1e-3)
    assert f"{factor:.4g} times the mean gradient" in str(found)


def test_pruning_is_named_and_told_to_the_attack(client):
    dump = pruned(client.gradient(), 0.7)
    found = diagnosis(client, dump)
    assert [f.name for f in found.faults] == ["pruned"]
    assert "70% of its entries are 0" in str(found)
    assert found.faults[0].setting == {"pruned": True}
    assert diagnosis(client, dump, pruned=True).verdict == "agrees"
    both = diagnosis(client, [-g for g in dump], pruned=True)
    assert [f.name for f in both.faults] == ["sign"]
    assert diagnosis(client, dump[::-1], pruned=True).faults[0].name == "order"
    labels = diagnosis(client, pruned(client.gradient(y=client.y.roll(1)), 0.5), pruned=True)
    assert [f.name for f in labels.faults] == ["labels"]


def test_an_attack_that_knows_of_pruning_comes_closer(client):
    one = replace(client, x=client.x[:1], y=client.y[:1])
    dump = pruned(one.gradient(), 0.6)
    known: dict[str, Any] = {"inputs": (one.x, one.y), "attack": "idlg", "settings": {"iterations": 80}}
    told = invert(one.model, dump, (1, 12, 12), pruned=True, **known)
    untold = invert(one.model, dump, (1, 12, 12), force=True, **known)
    assert told.metrics["psnr_db"] > untold.metrics["psnr_db"] + 5
    assert any("taken for pruned" in n for n in told.notes)
    assert told.report["diagnosis"]["verdict"] == "agrees"


def test_momentum_is_refused_for_a_gradient(client):
    with pytest.raises(ConfigError, match=r"momentum=0.9: 0 with kind=gradient"):
        invert(client.model, client.gradient(), (1, 12, 12), momentum=0.9, **FAST)
