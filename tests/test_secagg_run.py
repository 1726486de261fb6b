"""Runs under secure aggregation on disk: they resume, say what was refused, and their attacks are on the sum."""

import json
import multiprocessing
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.progress import Progress
from privbench.benchmarks.results.load import load
from privbench.benchmarks.results.record import Record
from privbench.benchmarks.run import Outcome, run
from privbench.benchmarks.sweep import compose

SMALL = ["task=digits", "task.records=200", "model=mlp", "federation.clients=4", "federation.workers=1"]
LOST = [
    "defense=secagg", "federation.rounds=3", "federation.clients=8", "defense.channel.late_dropout=0.1",
    "defense.channel.threshold=0.6",
]  # fmt: skip


def do(folder: Path, *overrides: str) -> tuple[Outcome, Path]:
    prepared = compose([*SMALL, *overrides, f"results_dir={folder}"])
    return run(prepared, {"defense": "secagg"}, Progress("test")), prepared.path


def numbers(path: Path) -> list[dict[str, Any]]:
    """Metrics other than times."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if not row["metric"].endswith(("_seconds", "memory_bytes"))]


def test_a_run_that_was_killed_goes_on_to_the_same_numbers(tmp_path: Path):
    def child() -> None:
        checkpoint = Record.checkpoint

        def checked(self: Record, state: Any) -> None:
            checkpoint(self, state)
            if state.round == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        Record.checkpoint = checked
        do(tmp_path / "killed", *LOST)

    process = multiprocessing.get_context("fork").Process(target=child)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    outcome, path = do(tmp_path / "killed", *LOST, "federation.workers=2")
    assert (outcome.status, outcome.how) == ("complete", "resumed")
    whole, other = do(tmp_path / "whole", *LOST)
    assert whole.status == "complete"
    assert numbers(path) == numbers(other)
    assert {r["value"] for r in numbers(path) if r["metric"] == "dropped"} != {0}


def test_a_refused_round_is_in_the_record(tmp_path: Path):
    outcome, path = do(tmp_path, "defense=secagg", "federation.dropout=0.6", "federation.rounds=3")
    assert outcome.status == "failed"
    said = json.loads((path / "manifest.json").read_text())
    assert said["status"] == "failed"
    assert said["error"].startswith("RoundRefused: below_threshold: ")
    assert "3 are needed, nothing is released" in said["error"]


def test_leakage_is_of_the_sum_and_the_record_says_so(tmp_path: Path):
    attack = [
        "leakage=dlg",
        "leakage.attack.iterations=3",
        "leakage.victims=1",
        "federation.rounds=1",
    ]
    tiny = ["leakage.max_batch=null", "task/partition=quantity", "task.partition.sizes=[1,2]"]
    outcome, path = do(tmp_path, "defense=secagg", "federation=fedsgd", *attack, *tiny)
    assert (outcome.status, outcome.note) == ("complete", None)
    scores = [r for r in numbers(path) if r["metric"] == "psnr_db"]
    assert {(r["source"], r["exact"], r["value"] is not None) for r in scores} == {("aggregate", False, True)}
    said = json.loads((path / "manifest.json").read_text())
    assert (said["assurance"], said["isolation"]) == ("none", "same_process")
    assert load(path).arms()[0].label == "secagg"


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (["defense=median", "defense/channel=secagg"], "defense.aggregation"),
        (["defense=norm_clipping", "defense/channel=secagg"], "defense.aggregation"),
        (["defense=dp_central", "defense/channel=secagg"], "defense.aggregation"),
        (["defense=secagg", "defense.channel.bits=28"], "defense.channel.bits"),
    ],
)
def test_what_it_can_not_do_is_refused_before_training(tmp_path: Path, overrides: list[str], field: str):
    with pytest.raises(ConfigError) as caught:
        compose([*SMALL, *overrides, f"results_dir={tmp_path}"])
    assert caught.value.field == field
