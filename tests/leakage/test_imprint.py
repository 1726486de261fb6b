"""The imprint attack: what an operator gets by sending a crafted model, what shows it, and what stops it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from privbench.attacks.leakage.attack import AttackFailed
from privbench.attacks.leakage.imprint import Imprint, brightness
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.measures import images
from privbench.benchmarks.measures.model_change import identical_rows
from privbench.benchmarks.progress import Progress
from privbench.benchmarks.run import run
from privbench.benchmarks.sweep import compose
from privbench.benchmarks.tasks.models import ImprintBlock, SmallCNN, make
from privbench.benchmarks.tasks.task import Spec

SMALL = ["task=digits", "federation=fedsgd", "federation.clients=40", "federation.rounds=1", "federation.workers=1"]


def mlp(hidden: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def block() -> nn.Module:
    spec = Spec("digits", (1, 28, 28), tuple("0123456789"), torch.zeros(1), torch.ones(1), "image")
    return make(ImprintBlock(SmallCNN(4, 8), bins=256), spec, 0)


def crafted(s, attack: Imprint):
    """The scene at the crafted model, and the active operator's view of it."""
    sent = attack.craft(s.public, s.sent)
    there = replace(s, sent=sent)
    view = there.view("active_operator", participants=(0,), updates={0: there.update()}, received={0: sent})
    return there, replace(view, rounds=(replace(view.rounds[0], sent=s.sent),))


def psnr(s, found) -> torch.Tensor:
    original, x = (images.to_raw(v, s.public.mean, s.public.std) for v in (s.truth.x, found.x))
    return images.psnr(images.aligned(x, original, 0.5), original)


@pytest.mark.golden
@pytest.mark.parametrize(("model", "records", "least"), [(mlp(64), 8, 8), (mlp(1024), 32, 26), (block(), 16, 12)])
def test_a_bin_with_one_record_gives_it_exactly(scene, digits, generator, model, records, least):
    """``least``: bins are drawn by chance of the records' brightness, two in one bin are lost."""
    s, view = crafted(scene(model, records), Imprint(*brightness(digits.x[1000:])))
    found = Imprint().reconstruct(view, s.observation(view), generator)
    images.match(found.x, s.truth.x)
    assert int((psnr(s, found) > 60).sum()) >= least
    assert found.x.shape == s.truth.x.shape


def test_two_layers_change_and_a_participant_can_tell(scene):
    s = scene(mlp(64))
    there, _ = crafted(s, Imprint())
    changed = [n for n, v in s.public.layout.views(there.sent).items()
               if not torch.equal(v, s.public.layout.views(s.sent)[n])]  # fmt: skip
    assert changed == ["1.weight", "1.bias", "3.weight"]
    assert identical_rows(s.public.layout, s.sent) == 0
    assert identical_rows(s.public.layout, there.sent) == 1


def test_bins_are_quantiles():
    q = Imprint(0.5, 2.0).thresholds(100)
    assert bool((q.diff() > 0).all())
    drawn = 0.5 + 2 * torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    shares = torch.histc(torch.bucketize(drawn, q).double(), 101, 0, 100)
    assert float((shares[1:-1] / len(drawn) - 0.01).abs().max()) < 0.002


def test_an_honest_model_is_refused_by_name(scene, generator):
    s = scene(mlp(64), 2)
    for view in (s.view("active_operator"), s.view("server_operator")):
        with pytest.raises(AttackFailed, match=r"lacks model_modification \(a model of the adversary's own making"):
            Imprint().reconstruct(view, s.observation(view), generator)
    logistic = scene(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)))
    with pytest.raises(AttackFailed, match="imprint block is missing"):
        Imprint().craft(logistic.public, logistic.sent)


@pytest.mark.parametrize(("field", "value"), [("location", float("inf")), ("scale", 0.0), ("scale", float("inf"))])
def test_bad_settings(field, value):
    with pytest.raises(ConfigError, match=field):
        Imprint(**{field: value})


def done(folder: Path, *overrides: str) -> tuple[dict[tuple[str, int | None], dict[str, Any]], Path]:
    """A run's metric rows by name and client."""
    prepared = compose([*SMALL, *overrides, f"results_dir={folder}"])
    outcome = run(prepared, {}, Progress("test"))
    assert outcome.status == "complete", outcome.note
    rows = [json.loads(line) for line in (prepared.path / "metrics.jsonl").read_text().splitlines()]
    return {(r["metric"], r.get("client")): r for r in rows}, prepared.path


def test_from_the_configuration(tmp_path):
    """40 clients of about 36 digits: most of each victim's records are read off exactly."""
    settings = ["model=mlp", "model.hidden=[1024]", "leakage=imprint", "leakage.victims=2"]
    rows, _ = done(tmp_path, *settings, "leakage.attack.scale=0.09", "leakage.images=4")
    for client in (0, 1):
        assert rows["psnr_exact", client]["adversary"] == "active_operator"
        assert rows["psnr_db_median", client]["value"] > 60
        assert rows["model_change", client]["value"] > 0.1
        assert rows["model_change_identical_rows", client]["value"] == 1
        assert rows["model_change", client]["adversary"] == "participant"
    assert ("model_change", 2) not in rows


def test_attested_clients_refuse_the_model_and_the_attack_gets_nothing(tmp_path):
    rows, path = done(
        tmp_path, "model=mlp", "federation.clients=4", "leakage=imprint", "leakage.victims=2", "defense=tee"
    )
    refusals = (path / "artifacts" / "attestation" / "refusals.jsonl").read_text()
    for client in (0, 1):
        assert f'"client": {client}, "by": "client", "name": "wrong_model"' in refusals
        row = rows["psnr_db", client]
        assert (row["value"], row["status"]) == (None, "not_applicable")
        assert "refused the model that was made for it" in row["reason"]
        assert rows["model_change", client]["value"] > 0
    assert rows["participants", None]["value"] == 4
    assert '"client": 2, "by": "client"' not in refusals


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["model=mlp", "leakage.adversaries=[server_operator]"], "leakage.adversaries.*Imprint needs: model_modif"),
        (["model=mlp", "defense=tee", "defense.channel.downlink=sealed"], "downlink.*model_modification"),
        (["model=small_cnn"], "model.*Imprint can craft.*Conv2d"),
        (["model=logistic"], "model.*imprint block is missing"),
    ],
)
def test_refused_before_training(tmp_path, overrides, reason):
    with pytest.raises(ConfigError, match=reason):
        compose([*SMALL, "leakage=imprint", *overrides, f"results_dir={tmp_path}"])


def test_a_participant_s_view_holds_what_it_received(federate):
    class Twice:
        def craft(self, model, client):
            return model * 2 if client == 1 else model

    seen = federate(clients=3, rounds=1, distribution=Twice()).rounds[0].views
    for name, received in {
        "participant": {1},
        "active_operator": {1},
        "model_recipient": set(),
        "network": set(),
    }.items():
        assert set(seen[name].rounds[0].received) == received
