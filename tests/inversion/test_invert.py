"""The Python call: images, signals and tables, and input that is refused by name."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from privbench.attacks.leakage.attack import AttackFailed
from privbench.attacks.leakage.dlg import DLG
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.inversion import invert
from privbench.benchmarks.inversion.output import write

IMAGE = (1, 12, 12)
FAST: dict[str, Any] = {"settings": {"iterations": 1}}


def test_an_image_is_reconstructed(client):
    one = type(client)(client.model, client.x[:1], client.y[:1])
    found = invert(one.model, one.gradient(), IMAGE, inputs=(one.x, one.y), attack="idlg", settings={"iterations": 150})
    assert found.y.tolist() == [3]
    assert found.metrics["psnr_db"] > 40
    assert found.metrics["psnr_db_mosaic"] < 15
    assert found.metrics["label_accuracy"] == 1
    assert torch.allclose(found.raw, one.x, atol=0.05)
    assert torch.__version__.startswith(found.report["versions"]["torch"])
    # The attack never saw the truth: without it, the reconstruction is the same, bit for bit.
    blind = invert(one.model, one.gradient(), IMAGE, attack="idlg", settings={"iterations": 150})
    assert torch.equal(blind.x, found.x)
    assert blind.metrics == {}
    assert any("no inputs were given" in n for n in blind.notes)


def test_a_signal(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 8, 5, 1, 2), nn.Sigmoid(), nn.Flatten(), nn.Linear(8 * 40, 4))
    t = torch.linspace(0, 6.28, 40)
    x, y = torch.stack([t.sin(), (3 * t).cos()])[None], torch.tensor([2])
    F.cross_entropy(model(x), y).backward()
    gradient = [p.grad for p in model.parameters()]
    found = invert(
        model, gradient, (2, 40), inputs=(x, y), attack="idlg", settings={"iterations": 100}, mean=1.0, std=2.0
    )
    assert found.metrics["mse"] < 1e-3
    assert found.metrics["mse"] < found.metrics["mse_mean"] / 100
    assert "psnr_db" not in found.metrics
    written = {p.name for p in write(found, tmp_path, {})}
    assert written == {"reconstructions.npz", "reconstructions.png", "reconstructions.pdf", "report.json"}
    with np.load(tmp_path / "reconstructions.npz") as arrays:
        assert np.allclose(arrays["raw"], arrays["x"] * 2 + 1)
        assert arrays["originals"].shape == (1, 2, 40)


def test_a_table(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 2))
    x, y = torch.tensor([[0.5, -1.0, 2.0, 0.0, -0.3]]), torch.tensor([1])
    F.cross_entropy(model(x), y).backward()
    gradient = [p.grad for p in model.parameters()]
    mean, std = [50.0, 120, 200, 1, 0], [10.0, 20, 40, 1, 1]
    known: dict[str, Any] = {"inputs": (x, y), "mean": mean, "std": std}
    found = invert(model, gradient, (5,), attack="idlg", settings={"iterations": 100}, **known)
    assert found.y.tolist() == [1]
    assert found.metrics["mse"] < 1e-4
    rows = [r.split(",") for r in write(found, tmp_path, {})[1].read_text().splitlines()]
    assert rows[0] == ["record", "what", "label", *(f"feature_{i}" for i in range(5))]
    assert [r[1] for r in rows[1:]] == ["original", "reconstruction"]
    assert [float(v) for v in rows[1][3:]] == pytest.approx([55, 100, 280, 1, -0.3], rel=1e-4)
    assert [float(v) for v in rows[2][3:]] == pytest.approx([55, 100, 280, 1, -0.3], abs=1.0)


def test_a_regression_with_known_targets():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1))
    # Not the attack's seed: its start would be the answer.
    x, y = torch.randn(1, 5, generator=torch.Generator().manual_seed(7)), torch.tensor([0.7])
    F.mse_loss(model(x).squeeze(1), y).backward()
    gradient = [p.grad for p in model.parameters()]
    known: dict[str, Any] = {"loss": "mse", "attack": "idlg", "settings": {"iterations": 100}}
    found = invert(model, gradient, (5,), inputs=(x, y), labels="known", **known)
    assert found.metrics["mse"] < 1e-3
    with pytest.raises(ConfigError, match="labels=inferred: known or joint with loss=mse"):
        invert(model, gradient, (5,), **known)
    with pytest.raises(ConfigError, match="classes=1: at least 2"):
        invert(model, gradient, (5,))


def test_an_update_of_several_steps_says_so(client):
    update = client.trained(0.05, 3)
    known: dict[str, Any] = {"kind": "update", "learning_rate": 0.05, "local_steps": 3, "settings": {"iterations": 2}}
    found = invert(client.model, update, IMAGE, inputs=(client.x, client.y), **known)
    assert found.diagnosis is not None
    assert found.diagnosis.verdict == "agrees"
    assert any(n.startswith("3 local steps") for n in found.notes)


def test_what_the_model_cannot_take(normed):
    # One image of one pixel for each channel: BatchNorm has nothing to normalise in training mode.
    model = nn.Sequential(nn.Conv2d(1, 6, 12), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6, 10))
    update = [torch.ones_like(p) for p in model.parameters()]
    with pytest.raises(ConfigError, match=r"inputs=.*has a gradient.*ValueError"):
        invert(model, update, IMAGE, inputs=(normed.x[:1], normed.y[:1]), mode="train", **FAST)


def test_frozen_and_unused_parameters(client):
    client.model[0].requires_grad_(False)
    client.model.register_parameter("unused", nn.Parameter(torch.zeros(3)))
    F.cross_entropy(client.model(client.x), client.y).backward()
    gradient = [p.grad for p in client.model.parameters() if p.requires_grad]
    found = invert(client.model, gradient, IMAGE, inputs=(client.x, client.y), settings={"iterations": 1})
    assert found.diagnosis is not None
    assert found.diagnosis.verdict == "agrees"


def test_buffers_in_a_list_of_the_state(normed):
    before = {n: t.clone() for n, t in normed.model.state_dict().items()}
    normed.model.train()
    F.cross_entropy(normed.model(normed.x), normed.y).backward()
    with torch.no_grad():
        for p in normed.model.parameters():
            p -= 0.05 * p.grad
    update = [t - before[n] for n, t in normed.model.state_dict().items()]
    normed.model.load_state_dict(before)
    known: dict[str, Any] = {"kind": "update", "learning_rate": 0.05, "mode": "train", "settings": {"iterations": 1}}
    found = invert(normed.model, update, IMAGE, inputs=(normed.x, normed.y), **known)
    assert found.diagnosis is not None
    assert found.diagnosis.verdict == "agrees"


def test_known_labels_and_own_attacks(client):
    gradient = client.gradient()
    attack = DLG(iterations=2)
    found = invert(client.model, gradient, IMAGE, labels=[4, 3, 1, 1], attack=attack)
    assert sorted(found.y.tolist()) == [1, 1, 3, 4]
    assert found.records == 4
    assert any("side information" in n for n in found.notes)
    found = invert(client.model, gradient, IMAGE, records=4, labels="joint", attack=attack)
    assert found.report["attack"]["labels"] == "joint"


class Tuple(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(144, 10)

    def forward(self, x):
        return (self.layer(x.flatten(1)),)


class Maps(nn.Conv2d):
    def __init__(self):
        super().__init__(1, 10, 3)


def elementwise(output, y):
    return F.cross_entropy(output, y, reduction="none")


NAN = [torch.full((6, 1, 5, 5), torch.nan)]
BAD = {
    "shape=[3, 12, 12]": {"shape": (3, 12, 12)},
    "shape=[]": {"shape": ()},
    "shape=[1, 0, 3]": {"shape": (1, 0, 3)},
    "model=Tuple: a model that returns a tensor": {"model": Tuple()},
    "model=Maps: a model that returns (batch, classes)": {"model": Maps()},
    "model=str": {"model": "LeNet"},
    "loss=l1_loss: a function of output (batch, 10) and labels": {"loss": F.l1_loss},
    "loss=elementwise: a function that returns a scalar": {"loss": elementwise},
    "classes=7: the 10 outputs": {"classes": 7},
    "records=0": {"records": 0},
    "records=3: 4, the number of inputs": {"records": 3},
    "kind=weights": {"kind": "weights"},
    "learning_rate=None": {"kind": "update"},
    "learning_rate=0": {"kind": "update", "learning_rate": 0},
    "local_steps=2: 1 with kind=gradient": {"local_steps": 2},
    "mode=test": {"mode": "test"},
    "loss=hinge": {"loss": "hinge"},
    "mean=[0.1, 0.2]: 1 or 1 numbers": {"mean": [0.1, 0.2]},
    "std=[0.0]": {"std": 0.0},
    "clip=-1": {"clip": -1},
    "noise_std=nan": {"noise_std": float("nan")},
    "seed=-1": {"seed": -1},
    "attack=deeper: one of": {"attack": "deeper"},
    "attack=os.system: an attack": {"attack": "os.system"},
    "attack.iterations=many: expected int": {"settings": {"iterations": "many"}},
    "attack.iterations=0: at least 1": {"settings": {"iterations": 0}},
    "attack.restart=2: unknown field": {"settings": {"restart": 2}},
    "attack.iterations.deep=2": {"settings": {"iterations.deep": 2}},
    "labels=guess": {"labels": "guess"},
    "labels=[1, 2, 3, 99]: labels from 0 to 9": {"labels": [1, 2, 3, 99]},
    "records=1: 4, the number of inputs": {"labels": [1]},
    "labels=[1]: labels of 4 records": {"labels": [1], "records": 4},
    "update=update: an update of this model: 1 tensors": {"update": NAN},
    "update=update: finite numbers; NaN or infinity in tensor 2": {"spoil": (2, torch.nan)},
    "update=update: a gradient: it is zero everywhere": {"spoil": (None, 0.0)},
    "update=update: an update of this model; without 0.weight": {"update": {"conv.weight": torch.ones(2)}},
    "update=update: an update of this model: 7 numbers": {"update": torch.ones(7)},
    "inputs.x": {"inputs": (torch.rand(4, 12, 12, 1), torch.zeros(4))},
    "inputs.y": {"inputs": (torch.rand(4, 1, 12, 12), torch.zeros(3))},
}


@pytest.mark.parametrize("message", BAD, ids=BAD)
def test_bad_input_is_named(message, client):
    given: dict[str, Any] = {
        "model": client.model,
        "update": client.gradient(),
        "shape": IMAGE,
        "inputs": (client.x, client.y),
    }
    given |= {"settings": {"iterations": 1}, **BAD[message]}
    if "spoil" in given:
        which, value = given.pop("spoil")
        given["update"] = [t * 0 + value if which in (None, k) else t for k, t in enumerate(given["update"])]
    with pytest.raises(ConfigError) as refused:
        invert(**given)
    assert message in str(refused.value)


def test_channels_last_and_labels_from_1_are_recognised(client):
    gradient, fast = client.gradient(), FAST
    with pytest.raises(ConfigError, match="its channels are last"):
        invert(client.model, gradient, IMAGE, inputs=(client.x.permute(0, 2, 3, 1), client.y), **fast)
    with pytest.raises(ConfigError, match="counted from 1"):
        invert(client.model, gradient, IMAGE, inputs=(client.x, torch.tensor([3, 1, 10, 1])), **fast)
    with pytest.raises(ConfigError, match="it is the transpose"):
        invert(client.model, [g.T if g.shape == (16, 216) else g for g in gradient], IMAGE, **fast)


class Once(torch.autograd.Function):
    """A layer without second derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        if slope.requires_grad:
            raise RuntimeError("no second derivative")
        return slope


class Coarse(nn.Module):
    def forward(self, x):
        return Once.apply(x)


def test_a_model_that_cannot_be_attacked_is_a_failed_attack():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), Coarse(), nn.Linear(8, 3))
    F.cross_entropy(model(torch.ones(1, 5)), torch.tensor([1])).backward()
    with pytest.raises(AttackFailed, match="RuntimeError in the attack: no second derivative"):
        invert(model, [p.grad for p in model.parameters()], (5,), settings={"iterations": 2})
