"""The suite's own mechanisms under audit: as they are they pass, with a bug planted into their code they don't.

Claims of epsilon 2 and enough canaries for the audit to find half of the noise with a probability of 0.9. Bugs are
patches of the code that trains; the whole run is the suite's.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from privbench.benchmarks.progress import Progress
from privbench.benchmarks.run import run
from privbench.benchmarks.sweep import compose
from privbench.defenses.aggregation import mean
from privbench.defenses.local import dp_sgd
from privbench.defenses.noise import gaussian
from privbench.defenses.release import release

ONE_STEP = ["task=digits", "task.records=200", "model=mlp", "federation.rounds=1", "federation.workers=1"]
AUDITED = ["inference=canaries", "defense.privacy.delta=1e-5"]
LOCAL = [
    *ONE_STEP,
    *AUDITED,
    "defense=dp_local",
    "model.hidden=[256,64]",
    "federation.clients=1",
    "federation.local.batch_size=null",
    "federation.local.steps=1",
    "inference.canaries.count=20000",
    "inference.adversaries=[server_operator]",
    "epsilon=2",
]
CENTRAL = [
    *ONE_STEP,
    *AUDITED,
    "defense=dp_central",
    "model.hidden=[110,50]",
    "federation.clients=4",
    "inference.canaries.count=12000",
    "inference.adversaries=[model_recipient]",
    "inference.layers=false",
    "epsilon=2",
]


@dataclass
class Audited:
    found: dict[str, Any]
    power: float


def audited(folder: Path, overrides: list[str]) -> Audited:
    prepared = compose([*overrides, f"results_dir={folder}"])
    outcome = run(prepared, {"task": "digits"}, Progress("test"))
    assert outcome.status == "complete", outcome.note
    rows = [json.loads(line) for line in (prepared.path / "metrics.jsonl").read_text().splitlines()]
    named = {row["metric"]: row for row in rows}
    return Audited(named["empirical_epsilon"], named["audit_power"]["value"])


def half(size, std, source, generator):
    return gaussian(size, std / 2, source, generator)


def bare_layer(size, std, source, generator):
    noise = gaussian(size, std, source, generator)
    noise[: 64 * 256 + 256] = 0
    return noise


def never_clips(norms, clip):
    return torch.ones_like(norms)


BUGS = {
    "half the noise": (dp_sgd, "gaussian", half),
    "no noise on one layer": (dp_sgd, "gaussian", bare_layer),
    "no clipping": (dp_sgd, "factors", never_clips),
}


def test_dp_sgd_passes_its_audit(tmp_path):
    result = audited(tmp_path, LOCAL)
    assert result.power >= 0.9
    assert result.found["proven"] == pytest.approx(2, abs=0.01)
    assert 0 <= result.found["value"] <= result.found["proven"]
    assert "status" not in result.found


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_in_dp_sgd_is_found(tmp_path, monkeypatch, bug):
    monkeypatch.setattr(*BUGS[bug])
    found = audited(tmp_path, LOCAL).found
    assert found["value"] > found["proven"]
    assert found["status"] == "violated"
    assert "server_operator" in found["reason"]
    if bug == "no noise on one layer":
        assert found["part"] == "1", "the layer is named"


@pytest.mark.slow
def test_central_noise_passes_its_audit(tmp_path):
    result = audited(tmp_path, CENTRAL)
    assert result.power >= 0.9
    assert result.found["unit"] == "client"
    assert result.found["value"] <= result.found["proven"] == pytest.approx(2, abs=0.01)


@pytest.mark.slow
def test_half_of_the_central_noise_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(release, "gaussian", half)
    assert audited(tmp_path, CENTRAL).found["status"] == "violated"


@pytest.mark.parametrize("clips", [True, False])
def test_a_server_that_does_not_clip_is_found(tmp_path, monkeypatch, clips):
    if not clips:
        monkeypatch.setattr(mean, "clip_factor", lambda norm, bound: 1.0)
    found = audited(tmp_path, [*CENTRAL, "inference.canaries.count=1000"]).found
    assert found["canaries"] == 1000
    assert ("status" in found) == (found["value"] > found["proven"]) == (not clips)
