"""Records from a first linear layer's gradient: what is exact, how it is known, and what is refused."""

import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch import nn

from privbench.attacks.leakage import spear
from privbench.attacks.leakage.attack import AttackFailed
from privbench.attacks.leakage.first_layer import FirstLayer
from privbench.attacks.leakage.linear import LinearInversion
from privbench.attacks.leakage.spear import Spear
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.measures import images
from privbench.benchmarks.progress import Progress
from privbench.benchmarks.results.report import report
from privbench.benchmarks.run import run
from privbench.benchmarks.sweep import compose
from privbench.benchmarks.tasks.models import MLP, LogisticRegression, make
from privbench.benchmarks.tasks.sources import MITBIH, UCIHeart
from privbench.benchmarks.tasks.task import Split


def mlp(hidden: int = 64, activation: type[nn.Module] = nn.ReLU, seed: int = 0, classes: int = 10) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, hidden), activation(), nn.Linear(hidden, classes))


def logistic() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def invert(s, attack, vector=None, **changes):
    view = s.view() if vector is None else s.view(updates={0: s.update(vector)})
    seen = replace(s.observation(view), **changes)
    return attack.reconstruct(view, seen, torch.Generator().manual_seed(0))


def psnr(s, found) -> torch.Tensor:
    """By record, dB, after matching."""
    original, x = (images.to_raw(v, s.public.mean, s.public.std) for v in (s.truth.x, found.x))
    images.match(found.x, s.truth.x)
    return images.psnr(images.aligned(x, original, 0.5), original)


def same_labels(s, found) -> bool:
    return sorted(found.y.tolist()) == sorted(s.truth.y.tolist())


@pytest.mark.parametrize("model", [mlp(), mlp(activation=nn.Tanh), mlp(activation=nn.Sigmoid), logistic()])
def test_one_record_is_exact_under_any_activation(scene, model):
    s = scene(model)
    found = invert(s, LinearInversion())
    assert float(psnr(s, found).min()) > 90
    assert same_labels(s, found)


def test_patients_from_the_configuration_to_the_report(tmp_path):
    """Five patients a client: exact, with their labels; and a report, which has no pictures of tables."""
    settings = ["task=uci_heart", "task/partition=iid", "model=mlp", "federation=fedsgd", "federation.rounds=1"]
    settings += ["federation.clients=150", "federation.workers=1", "leakage=linear", f"results_dir={tmp_path}"]
    prepared = compose(settings)
    assert run(prepared, {}, Progress("test")).status == "complete"
    rows = [json.loads(line) for line in (prepared.path / "metrics.jsonl").read_text().splitlines()]
    found = {(r["metric"], r.get("client")): r["value"] for r in rows}
    for client in range(3):
        assert found["mse", client] < 1e-6 < found["mse_mean", client]
        assert found["label_accuracy", client] == 1
    report(prepared.path, Console(quiet=True))


@pytest.mark.golden
@pytest.mark.parametrize(("hidden", "records"), [(32, 4), (64, 8), (256, 16)])
def test_a_batch_behind_relu_is_peeled_exactly(scene, hidden, records):
    s = scene(mlp(hidden), records)
    found = invert(s, LinearInversion())
    assert float(psnr(s, found).min()) > 60
    assert same_labels(s, found)


def test_a_clip_or_another_scale_changes_nothing(scene):
    s = scene(mlp(), 4)
    found = invert(s, LinearInversion(), 0.01 * s.gradient)
    assert float(psnr(s, found).min()) > 60


def test_too_many_records_are_filled_with_distinct_guesses(scene):
    s = scene(mlp(32), 32)
    found = invert(s, LinearInversion())
    assert found.x.shape == s.truth.x.shape
    assert float(psnr(s, found).median()) < 30
    assert found.objective > 1e-3


@pytest.mark.golden
def test_logistic_regression_with_different_labels_is_exact(scene, digits):
    first = torch.stack([(digits.y == c).nonzero().flatten()[0] for c in (2, 5, 8, 1)])
    s = scene(logistic(), digits.take(first))
    found = invert(s, LinearInversion())
    assert float(psnr(s, found).min()) > 60
    assert same_labels(s, found)


def test_logistic_regression_gives_the_mean_of_a_class(scene, digits):
    sevens = (digits.y == 7).nonzero().flatten()[:3]
    other = (digits.y == 2).nonzero().flatten()[:1]
    s = scene(logistic(), digits.take(torch.cat([sevens, other])))
    found = invert(s, LinearInversion())
    mean = s.truth.x[:3].mean(0)
    got = found.x[found.y == 7]
    assert len(got) == 3
    assert torch.equal(got[0], got[2])
    assert float((got[0] - mean).norm() / mean.norm()) < 0.1


@pytest.mark.golden
@pytest.mark.parametrize("model", [MLP(), LogisticRegression()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("source", [UCIHeart(), MITBIH(classes=("N", "S", "V"))], ids=lambda s: type(s).__name__)
def test_a_patient_or_a_heartbeat_is_recovered(scene, source, model):
    data = source.load(None)
    spec = data.spec
    for i in (0, 100):
        truth = Split(data.train.x[i : i + 1], data.train.y[i : i + 1])
        s = scene(make(model, spec, 0), truth, mean=spec.mean, std=spec.std)
        s = replace(s, public=replace(s.public, classes=len(spec.classes)))
        found = invert(s, LinearInversion())
        # In standard deviations: 1e-3 is far below the last digit that a record is noted with.
        assert float((found.x - truth.x).abs().max()) < 1e-3
        assert found.y.tolist() == truth.y.tolist()


@pytest.mark.golden
@pytest.mark.parametrize("records", [1, 4, 8])
def test_spear_is_exact(scene, records):
    s = scene(mlp(128, seed=1), records)
    found = invert(s, Spear())
    assert float(psnr(s, found).min()) > 60
    assert same_labels(s, found)


@pytest.mark.golden
@pytest.mark.parametrize(("classes", "records"), [(2, 3), (2, 6), (3, 4), (3, 6)])
def test_spear_isnt_misled_by_few_classes(scene, digits, classes, records):
    """Differences of slopes are sparse there too, and are no combination of the next layer's weights."""
    for start in (0, 10):
        few = torch.nonzero(digits.y < classes).flatten()[start : start + records]
        s = scene(mlp(64, classes=classes), digits.take(few))
        s = replace(s, public=replace(s.public, classes=classes))
        found = invert(s, Spear())
        assert float(psnr(s, found).min()) > 60
        assert same_labels(s, found)
        assert found.engine == f"SPEAR; slopes of {records} of {records} records agree with their inputs"


def test_what_misleads_spear_is_said(scene, digits, monkeypatch):
    """Without that test of directions: never a good number in silence."""
    monkeypatch.setattr(spear, "next_weights", lambda layer: None)
    told = []
    for start in range(0, 60, 10):
        few = torch.nonzero(digits.y < 2).flatten()[start : start + 4]
        s = scene(mlp(64, seed=start, classes=2), digits.take(few))
        s = replace(s, public=replace(s.public, classes=2))
        try:
            found = invert(s, Spear(samples=8192))
        except AttackFailed as failure:
            told.append(failure.reason)
            continue
        if float(psnr(s, found).min()) < 60:
            told.append(found.engine)
            assert "slopes of 4 of 4 records" not in found.engine
            assert found.objective > 1e-6
    assert told
    assert all("slopes agree with" in t or "of 4 records agree" in t for t in told)


def test_without_a_unit_for_itself_a_batch_is_a_guess(scene):
    """Behind tanh every record activates every unit."""
    found = invert(scene(mlp(activation=nn.Tanh), 4), LinearInversion())
    assert found.engine == "division; 0 of 4 ratios pass for records, the rest are guesses"
    assert found.objective > 1e-3


def test_a_batch_of_patients_is_recovered(scene):
    data = UCIHeart().load(None)
    truth = data.train.take(torch.arange(6))
    s = scene(make(MLP((64,)), data.spec, 0), truth, mean=data.spec.mean, std=data.spec.std)
    s = replace(s, public=replace(s.public, classes=len(data.spec.classes)))
    found = invert(s, LinearInversion())
    i, j = images.match(found.x, truth.x)
    assert float((found.x[i] - truth.x[j]).abs().max()) < 1e-2


def test_spear_says_what_stops_it(scene):
    with pytest.raises(AttackFailed, match="no ReLU follows"):
        invert(scene(mlp(activation=nn.Tanh), 2), Spear())
    with pytest.raises(AttackFailed, match="more than the first layer's 4 units"):
        invert(scene(mlp(4), 6), Spear())
    s = scene(mlp(), 4)
    noisy = s.gradient + 0.01 * torch.randn(s.gradient.shape, generator=torch.Generator().manual_seed(0))
    with pytest.raises(AttackFailed, match="don't find 4 independent sparse directions"):
        invert(s, Spear(samples=2000), noisy)


def test_the_first_layer_must_see_the_input(scene):
    convolution = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 26 * 26, 10))
    pooled = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(196, 10))
    biasless = nn.Sequential(nn.Flatten(), nn.Linear(784, 8, bias=False), nn.ReLU(), nn.Linear(8, 10))
    for model, reason in (
        (convolution, "is Conv2d"),
        (pooled, "doesn't see the flattened input"),
        (biasless, "no bias"),
    ):
        for attack in (LinearInversion(), Spear()):
            with pytest.raises(AttackFailed, match=reason):
                invert(scene(model), attack)


def test_a_dead_layer_is_a_failure_by_name(scene):
    model = mlp()
    with torch.no_grad():
        model.get_parameter("1.bias").fill_(-1e4)
    with pytest.raises(AttackFailed, match="no unit is active"):
        invert(scene(model), LinearInversion())


def test_the_gate_is_found_by_what_gradients_do(scene):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(784, 16), nn.Linear(16, 10)

        def forward(self, x):
            return self.last(torch.relu(self.first(x.flatten(1))))

    in_place = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(inplace=True), nn.Linear(16, 10))
    found = {}
    for name, model in {"functional": Functional(), "in_place": in_place, "tanh": mlp(activation=nn.Tanh)}.items():
        s = scene(model)
        layer = FirstLayer.of(s.public, s.sent)
        found[name] = (layer.gated, layer.final, layer.second)
    assert found == {
        "functional": (True, False, "last"),
        "in_place": (True, False, "3"),
        "tanh": (False, False, None),
    }


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (LinearInversion, "tolerance", 0.0),
        (LinearInversion, "iterations", 0),
        (Spear, "samples", 0),
        (Spear, "sparsity", 1.0),
    ],
)
def test_bad_settings(kind, field, value):
    with pytest.raises(ConfigError, match=field):
        kind(**{field: value})
