"""Each way in which a dump can be another than the user thinks is found, by name."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.inversion import Diagnosis, DumpDiffers, invert

FAST: dict[str, Any] = {"settings": {"iterations": 1}}


def names(found: Diagnosis) -> list[str]:
    return [f.name for f in found.faults]


def setting(found: Diagnosis):
    return {k: v for f in found.faults for k, v in f.setting.items()}


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def test_the_true_gradient_agrees_however_it_is_written(client, diagnosis):
    gradient = client.gradient()
    by_name = {n: g for (n, _), g in zip(client.model.named_parameters(), gradient, strict=True)}
    shuffled = dict(reversed([*by_name.items()]))
    wrapped = {f"module.{n}": g for n, g in by_name.items()}
    for update in (gradient, tuple(gradient), by_name, shuffled, wrapped, flat(gradient)):
        found = diagnosis(client, update)
        assert found.verdict == "agrees"
        assert found.error is not None
        assert found.error < 1e-5


def test_half_precision_agrees(client, diagnosis):
    assert diagnosis(client, [g.bfloat16() for g in client.gradient()]).verdict == "agrees"


@pytest.mark.parametrize("one", [False, True], ids=["list", "flat"])
def test_order_is_named(client, one, diagnosis):
    gradient, parameters = client.gradient(), [n for n, _ in client.model.named_parameters()]
    alphabet = sorted(range(8), key=lambda i: parameters[i])
    for order, text in (
        ([*range(8)][::-1], "reversed"),
        (alphabet, "sorted by name"),
        ([0, 2, 4, 6, 1, 3, 5, 7], "all weights"),
    ):
        update = [gradient[i] for i in order]
        found = diagnosis(client, flat(update) if one else update)
        assert names(found) == ["order"]
        assert text in str(found)
        assert setting(found)["order"] == [parameters[i] for i in order]


def test_tensors_of_equal_shape_are_told_apart_by_their_values(client, diagnosis):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 9), *(nn.Sequential(nn.Tanh(), nn.Linear(9, 9)) for _ in "abc"))
    client = type(client)(model, client.x, client.y)
    gradient, parameters = client.gradient(), [n for n, _ in model.named_parameters()]
    order = [0, 1, 6, 3, 2, 5, 4, 7]
    found = diagnosis(client, [gradient[i] for i in order])
    assert names(found) == ["order"]
    assert setting(found)["order"] == [parameters[i] for i in order]


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_mode_is_named(normed, mode, diagnosis):
    other = "eval" if mode == "train" else "train"
    assert diagnosis(normed, normed.gradient(mode=mode), mode=mode).verdict == "agrees"
    found = diagnosis(normed, normed.gradient(mode=other), mode=mode)
    assert names(found) == ["mode"]
    assert setting(found) == {"mode": other}


def test_checking_leaves_the_users_model_alone(normed, diagnosis):
    before = {n: t.clone() for n, t in normed.model.state_dict().items()}
    diagnosis(normed, [-2 * g for g in normed.gradient(y=normed.y.roll(1))], mode="train")
    assert all(torch.equal(t, before[n]) for n, t in normed.model.state_dict().items())
    assert not normed.model.training


@pytest.mark.parametrize(
    ("factor", "name", "text"),
    [
        (4, "reduction", "summed over the 4 records"),
        (1 / 4, "reduction", "once too often"),
        (-1, "sign", "negative gradient"),
        (-0.05, "kind", "update, -0.05 times"),
        (65536, "scale", "6.554e+04 times"),
        (0.3, "scale", "clip="),
    ],
)
def test_factors_are_named(client, factor, name, text, diagnosis):
    found = diagnosis(client, [factor * g for g in client.gradient()])
    assert names(found) == [name]
    assert text in str(found)


def test_summed_squared_error_is_named(client, diagnosis):
    def summed(output, y):
        return F.mse_loss(output, F.one_hot(y, 10).float(), reduction="none").sum(1).mean()

    found = diagnosis(client, client.gradient(loss=summed), loss="mse", labels="known")
    assert names(found) == ["reduction"]
    assert "10 outputs" in str(found)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([1, 3, 4, 1], "another order"),
        ([2, 0, 3, 0], "one too high"),
        ([4, 2, 5, 2], "one too low"),
        ([3, 1, 4, 9], "others"),
    ],
)
def test_labels_are_named(client, labels, text, diagnosis):
    found = diagnosis(client, client.gradient(y=torch.tensor(labels)))
    assert names(found) == ["labels"]
    assert setting(found) == {"labels": labels}
    assert text in str(found)


def test_one_hot_labels_are_labels(client, diagnosis):
    one_hot = F.one_hot(client.y, 10)
    assert diagnosis(client, client.gradient(), inputs=(client.x, one_hot)).verdict == "agrees"


@pytest.mark.parametrize(
    ("change", "given", "text"),
    [
        (lambda x: (x - 0.4) / 0.25, {"mean": 0.4, "std": 0.25}, "standardised with mean and std; x isn't"),
        (lambda x: x * 0.25 + 0.4, {"mean": 0.4, "std": 0.25}, "raw, not standardised"),
        (lambda x: x / 255, {}, "divided by 255"),
        (lambda x: x * 255, {}, "in [0, 255]"),
        (lambda x: (x - 0.1307) / 0.3081, {}, "MNIST's"),
        (lambda x: (x - 0.5) / 0.5, {}, "0.5 and 0.5"),
    ],
)
def test_standardisation_is_named(client, change, given, text, diagnosis):
    found = diagnosis(client, client.gradient(x=change(client.x)), **given)
    assert names(found) == ["standardisation"]
    assert text in str(found)


def test_updates(client, diagnosis):
    update = client.trained(0.05)
    known: dict[str, Any] = {"kind": "update", "learning_rate": 0.05}
    assert diagnosis(client, update, **known).verdict == "agrees"
    found = diagnosis(client, update, kind="update", learning_rate=0.01)
    assert names(found) == ["learning_rate"]
    assert setting(found)["learning_rate"] == pytest.approx(0.05, rel=1e-3)
    assert names(diagnosis(client, [-u for u in update], **known)) == ["sign"]
    found = diagnosis(client, client.gradient(), **known)
    assert setting(found) == {"kind": "gradient"}
    assert names(diagnosis(client, client.trained(0.05, decay=0.1), **known)) == ["weight_decay"]


@pytest.mark.parametrize("parts", [False, True])
def test_local_steps(client, parts, diagnosis):
    update = client.trained(0.5, 2, parts=parts)
    known: dict[str, Any] = {"kind": "update", "learning_rate": 0.5}
    batch = {"batch_size": 2} if parts else {}
    assert diagnosis(client, update, local_steps=2, **batch, **known).verdict == "agrees"
    found = diagnosis(client, update, **known)
    assert names(found) == ["local_steps"]
    assert setting(found) == {"local_steps": 2, **batch}
    assert setting(diagnosis(client, client.trained(0.5), local_steps=3, **known)) == {"local_steps": 1}
    other = {} if parts else {"batch_size": 2}
    found = diagnosis(client, update, local_steps=2, **other, **known)
    assert names(found) == ["batch_size"]
    assert setting(found) == {"batch_size": 2 if parts else 4}


def test_epochs_of_minibatches(client, diagnosis):
    moved = client.trained(0.5, 2, parts=True)
    with torch.no_grad():
        for p, u in zip(client.model.parameters(), moved, strict=True):
            p += u
    second = client.trained(0.5, 2, parts=True)
    with torch.no_grad():
        for p, u in zip(client.model.parameters(), moved, strict=True):
            p -= u
    update = [a + b for a, b in zip(moved, second, strict=True)]
    known = {"kind": "update", "learning_rate": 0.5}
    assert diagnosis(client, update, local_steps=4, batch_size=2, **known).verdict == "agrees"
    assert setting(diagnosis(client, update, **known)) == {"local_steps": 4, "batch_size": 2}


def test_two_faults_are_found_together(normed, diagnosis):
    update = [4 * g for g in normed.gradient(mode="train")][::-1]
    assert sorted(names(diagnosis(normed, update))) == ["mode", "order", "reduction"]
    # The padding of the convolution is not standardised, so that BatchNorm does not undo the shift.
    update = normed.gradient(x=(normed.x - 0.5) / 0.5, mode="train")
    assert sorted(names(diagnosis(normed, update))) == ["mode", "standardisation"]
    update = normed.gradient(y=normed.y.roll(1), mode="train")
    assert sorted(names(diagnosis(normed, update))) == ["labels", "mode"]


def test_other_weights_are_not_explained_away(client, diagnosis):
    gradient = client.gradient()
    with torch.no_grad():
        for p in client.model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)), alpha=0.05)
    found = diagnosis(client, gradient)
    assert found.verdict == "differs"
    assert not found.faults
    assert "a random initialisation must be the same" in str(found)


def test_published_clip_and_noise(client, diagnosis):
    gradient = client.gradient()
    length = float(flat(gradient).norm())
    clipped = [g * 0.5 for g in gradient]
    assert diagnosis(client, clipped, clip=length / 2).verdict == "agrees"
    generator = torch.Generator().manual_seed(0)
    std = 0.1 * length / len(flat(gradient)) ** 0.5
    noisy = [g + std * torch.randn(g.shape, generator=generator) for g in gradient]
    assert diagnosis(client, noisy).verdict == "differs"
    assert diagnosis(client, noisy, noise_std=std).verdict == "agrees"
    assert diagnosis(client, noisy, noise_std=20 * std).verdict == "hidden by noise"
    # Noise doesn't hide a wrong sign.
    assert names(diagnosis(client, [-g for g in noisy], noise_std=std)) == ["sign"]


def test_force_attacks_all_the_same(client):
    update = [-g for g in client.gradient()]
    given: dict[str, Any] = {"inputs": (client.x, client.y), **FAST}
    with pytest.raises(DumpDiffers, match="negative gradient"):
        invert(client.model, update, (1, 12, 12), **given)
    found = invert(client.model, update, (1, 12, 12), force=True, **given)
    assert found.diagnosis is not None
    assert not found.diagnosis.agrees
    assert found.report["diagnosis"]["faults"][0]["name"] == "sign"


def test_tensors_out_of_order_are_refused_without_inputs(client):
    with pytest.raises(ConfigError, match=r"tensor 0 has shape \(10,\).*the shapes fit parameters reversed"):
        invert(client.model, client.gradient()[::-1], (1, 12, 12), **FAST)
