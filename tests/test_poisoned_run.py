"""Poisoned runs: what the record says of the poisoner, and an attested aggregator that refuses tampered training."""

import json
from pathlib import Path
from typing import Any

import pytest

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.progress import Progress
from privbench.benchmarks.run import Outcome, run
from privbench.benchmarks.sweep import compose

SMALL = ["task=digits", "task.records=200", "model=mlp", "federation.clients=6", "federation.workers=1"]
BOTH = ["honest_updates", "rule"]


def do(folder: Path, *overrides: str) -> tuple[Outcome, Path]:
    prepared = compose([*SMALL, *overrides, f"results_dir={folder}"])
    return run(prepared, {"defense": "none"}, Progress("test")), prepared.path


def manifest(path: Path) -> dict[str, Any]:
    return json.loads((path / "manifest.json").read_text())


def rows(path: Path, metric: str) -> list[tuple[int, float]]:
    """Round and value of every line of ``metric``."""
    found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [(r["round"], r["value"]) for r in found if r["metric"] == metric]


@pytest.mark.parametrize(
    ("poisoning", "defense", "asks", "knows", "triggered"),
    [
        ("backdoor", "none", [], [], True),
        ("model_replacement", "median", [], [], True),
        ("neurotoxin", "none", [], [], True),
        ("clean_label", "none", [], [], True),
        ("label_flip", "none", [], [], False),
        ("ipm", "median", ["honest_updates"], ["honest_updates"], False),
        ("alie", "secagg", ["honest_updates"], [], False),
        ("min_max", "tee", ["honest_updates"], [], False),
        ("adaptive", "multi_krum", BOTH, BOTH, False),
        ("adaptive", "secagg", BOTH, ["rule"], False),
        ("constrain_and_scale", "secagg", [], [], True),
    ],
)
def test_the_record_says_what_the_poisoner_knows(tmp_path, poisoning, defense, asks, knows, triggered):
    asked = [f"poisoning={poisoning}", f"defense={defense}", "poisoning.clients=2", "federation.rounds=1"]
    outcome, path = do(tmp_path, *asked)
    assert (outcome.status, outcome.note) == ("complete", None)
    share = 4 / 64 if triggered else None
    assert manifest(path)["poisoner"] == {"clients": [4, 5], "asks": asks, "knows": knows, "trigger_share": share}
    # The rate of an attack that puts no trigger in is nobody's success.
    assert [r for r, _ in rows(path, "asr")] == ([1] if triggered else [])
    assert [r for r, _ in rows(path, "false_trigger_rate")] == ([] if triggered else [1])


def test_who_does_not_ask_knows_nothing(tmp_path):
    _, path = do(tmp_path, "poisoning=adaptive", "poisoning.omniscient=false", "federation.rounds=1")
    said = manifest(path)["poisoner"]
    assert (said["asks"], said["knows"]) == (["rule"], ["rule"])
    _, path = do(tmp_path, "poisoning=none", "federation.rounds=1")
    assert manifest(path)["poisoner"] is None
    assert not rows(path, "asr")


@pytest.mark.parametrize(
    ("trigger", "share"), [("small_patch", None), ("blended", 1.0), ("edge_case", 0.0), ("label_flip", 0.0)]
)
def test_the_trigger_share_is_the_triggers(tmp_path, trigger, share):
    _, path = do(tmp_path, "poisoning=backdoor", f"task/trigger={trigger}", "federation.rounds=1")
    found = manifest(path)["poisoner"]["trigger_share"]
    assert 0 < found < 1 if share is None else found == share
    assert len(rows(path, "asr")) == 1


def test_attested_clients_are_refused_in_the_rounds_that_they_tamper_in(tmp_path):
    """Honest guests in round 1; in round 2 the attackers' guests run other code, which their measurement shows."""
    asked = ["poisoning=neurotoxin", "poisoning.schedule.start=2", "defense=tee_clients", "federation.rounds=2"]
    asked += ["federation.clients=3", "task.records=60"]
    outcome, path = do(tmp_path, *asked)
    assert (outcome.status, outcome.note) == ("complete", None)
    assert rows(path, "refused") == [(1, 0), (2, 1)]
    assert rows(path, "refused_wrong_training_code") == [(2, 1)]
    assert manifest(path)["assurance"] == "software"


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (["poisoning=backdoor", "poisoning.schedule.stop=0"], "poisoning.schedule.stop"),
        (["poisoning=neurotoxin", "poisoning.steering.spared=1"], "poisoning.steering.spared"),
        (["poisoning=norm_constrained", "poisoning.steering.radius=0"], "poisoning.steering.radius"),
        (["poisoning=neurotoxin", "federation=fedsgd"], "poisoning.steering"),
        (["poisoning=clean_label", "task/trigger=label_flip"], "poisoning.clean_label"),
        (["poisoning=backdoor", "task/trigger=distributed", "task.trigger.corner=[7,7]"], "task.trigger.corner"),
        (["poisoning=backdoor", "task/trigger=out_of_range"], "task.trigger"),
        (["poisoning=backdoor", "task.trigger=null"], "task.trigger"),
        (["poisoning=min_max", "poisoning.clients=7"], "poisoning.clients"),
    ],
)
def test_refusals_name_a_setting_that_exists(tmp_path, overrides, field):
    with pytest.raises(ConfigError) as caught:
        compose([*SMALL, *overrides, f"results_dir={tmp_path}"])
    assert caught.value.field == field
