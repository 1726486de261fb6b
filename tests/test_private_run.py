"""A private run: it stops at its budget, states what a third party can recompute, and never without its history."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.progress import Progress
from privbench.benchmarks.run import Outcome, run
from privbench.benchmarks.sweep import compose
from privbench.defenses.accounting.verification import load, verify

SMALL = ["task=digits", "task.records=200", "model=mlp", "federation.clients=5", "federation.workers=1"]
NOISE = ["defense.privacy.epsilon=null", "defense.privacy.noise_multiplier=2"]


def do(folder: Path, *overrides: str) -> tuple[Outcome, Path]:
    prepared = compose([*SMALL, *overrides, f"results_dir={folder}"])
    return run(prepared, {"task": "digits"}, Progress("test")), prepared.path


def manifest(path: Path) -> dict[str, Any]:
    return json.loads((path / "manifest.json").read_text())


def last(path: Path, metric: str) -> dict[str, Any]:
    rows = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [r for r in rows if r["metric"] == metric][-1]


@pytest.mark.parametrize("defense", ["dp_central", "dp_local", "dp_local_client"])
def test_a_run_states_what_a_third_party_recomputes(tmp_path, defense):
    outcome, path = do(tmp_path, f"defense={defense}", *NOISE, "federation.rounds=2")
    assert outcome.status == "complete"
    parts = [load(path / "artifacts" / f"privacy_{name}.json") for name in ("statement", "opening")]
    assert [c.fault for c in verify(*parts) if c.fault] == []
    assert parts[0]["claims"] == manifest(path)["privacy"]
    assert parts[0]["ledger"]["rounds"] == 2
    assert parts[1]["cohorts"] == [5, 5]


def test_a_run_stops_at_its_budget(tmp_path):
    wanted = ["defense=dp_central", *NOISE, "federation.rounds=20"]
    whole = do(tmp_path, *wanted)[1]
    outcome, path = do(tmp_path, *wanted, "defense.privacy.budget=5")
    said = manifest(path)
    assert outcome.status == said["status"] == "complete"
    stopped = last(path, "epsilon")["round"]
    assert 1 < stopped < 20
    assert said["stopped"] == outcome.note == f"stopped after round {stopped} of 20: the privacy budget is spent"
    spent = next(s["epsilon"] for s in said["privacy"] if s["epsilon"] is not None)
    assert 4 < spent <= 5
    assert manifest(whole)["stopped"] is None
    assert next(s["epsilon"] for s in manifest(whole)["privacy"] if s["epsilon"] is not None) > 5
    # Its last round is measured like any run's last.
    assert last(path, "accuracy")["round"] == last(path, "noise_std")["round"] == stopped


def test_rounds_beyond_the_budget_are_not_attacked(tmp_path):
    attacked = ["leakage=inverting_gradients", "leakage.rounds=[20]", "federation.rounds=20"]
    with pytest.raises(ConfigError, match=r"leakage\.rounds"):
        do(tmp_path, "defense=dp_central", *NOISE, *attacked, "defense.privacy.budget=5")


def test_without_its_history_a_resumed_run_states_nothing(tmp_path):
    wanted = ["defense=dp_central", *NOISE, "federation.rounds=3"]
    _, path = do(tmp_path, *wanted)
    saved = torch.load(path / "checkpoint.pt", weights_only=False)
    saved["state"].round, saved["state"].ledger = 2, saved["state"].ledger[:1]
    torch.save(saved, path / "checkpoint.pt")
    (path / "manifest.json").write_text(json.dumps({**manifest(path), "status": "running", "privacy": None}))
    outcome, _ = do(tmp_path, *wanted)
    assert outcome.status == "failed"
    assert "the privacy history of round 2 is missing" in (outcome.note or "")
    assert manifest(path)["privacy"] is None


@pytest.mark.parametrize(("source", "how"), [("system", "kept"), ("seeded", "ran")])
def test_what_another_revision_released_with_noise_of_the_system_is_not_forgotten(tmp_path, source, how):
    wanted = ["defense=dp_central", *NOISE, "federation.rounds=2", f"defense.privacy.noise_source={source}"]
    _, path = do(tmp_path, *wanted)
    begun = {**manifest(path), "status": "running", "revision": {"commit": "0" * 40, "dirty": False}}
    (path / "manifest.json").write_text(json.dumps(begun))
    saved = (path / "checkpoint.pt").read_bytes()
    for _ in range(2 if how == "kept" else 1):
        outcome, _ = do(tmp_path, *wanted)
        assert outcome.how == how
    if how == "kept":
        assert outcome.status == manifest(path)["status"] == "failed"
        # A finished one isn't repeated for its age alone, either.
        (path / "manifest.json").write_text(json.dumps({**begun, "status": "complete"}))
        outcome, _ = do(tmp_path, *wanted, "rerun=stale")
        assert (outcome.how, outcome.status) == ("kept", "complete")
        assert "rerun=all repeats it" in (outcome.note or "")
        (path / "manifest.json").write_text(json.dumps(begun))
        do(tmp_path, *wanted)
        assert "what it released counts; rerun=all starts anew" in manifest(path)["error"]
        assert (path / "checkpoint.pt").read_bytes() == saved
        outcome, _ = do(tmp_path, *wanted, "rerun=all")
    assert (outcome.how, outcome.status) == ("ran", "complete")


@pytest.mark.parametrize("defense", ["pruning", "quantisation"])
def test_a_heuristic_states_no_epsilon_and_says_so(tmp_path, defense):
    outcome, path = do(tmp_path, f"defense={defense}", "federation.rounds=1")
    assert outcome.status == "complete"
    said = manifest(path)
    assert said["heuristic"] == defense.capitalize()
    assert said["privacy"] is None
    assert not (path / "artifacts" / "privacy_statement.json").exists()


def test_a_run_that_stops_at_its_budget_is_audited_after_its_last_round(tmp_path):
    wanted = ["defense=dp_central", *NOISE, "federation.rounds=20", "defense.privacy.budget=5"]
    outcome, path = do(tmp_path, *wanted, "inference=loss_threshold", "inference.candidates=40")
    stopped = last(path, "epsilon")["round"]
    assert outcome.note == f"stopped after round {stopped} of 20: the privacy budget is spent"
    found = last(path, "empirical_epsilon")
    assert found["round"] == stopped
    (client,) = (s for s in manifest(path)["privacy"] if s["adversary"] == "model_recipient")
    assert 4 < client["epsilon"] <= 5 < found["proven"], "a record has the client's epsilon by replacement"
    assert last(path, "membership_auc")["round"] == stopped
