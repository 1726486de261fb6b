"""Repeats are runs of their own with the same numbers, and take turns so that drift favours no arm."""

import json
from pathlib import Path

import pytest

from privbench.benchmarks import cli, index
from privbench.benchmarks.results.load import load
from privbench.benchmarks.sweep import compose, plan

SMALL = ["task=digits", "task.records=200", "model=mlp", "federation.clients=3", "federation.rounds=1"]


def order(*overrides: str) -> list[str]:
    jobs = plan([*SMALL, *overrides], multirun=True)
    return [" ".join(o for o in job.overrides if o.split("=")[0] in ("repeat", "seed", "defense")) for job in jobs.jobs]


def test_every_other_repeat_goes_backwards(tmp_path: Path):
    found = order("repeat=0,1,2", "seed=0,1", "defense=none,median", f"results_dir={tmp_path}")
    there = [f"seed={s} defense={d}" for s in (0, 1) for d in ("none", "median")]
    wanted = [f"repeat={r} {job}" for r in range(3) for job in (there[::-1] if r % 2 else there)]
    assert found == wanted


def test_a_sweep_without_repeats_keeps_its_order(tmp_path: Path):
    assert order("defense=none,median", f"results_dir={tmp_path}") == ["defense=none", "defense=median"]
    assert order("repeat=1", "defense=none,median", f"results_dir={tmp_path}")[0] == "repeat=1 defense=none"


def test_a_repeat_is_named_beside_its_run(tmp_path: Path):
    first, second = (compose([*SMALL, f"repeat={r}", f"results_dir={tmp_path}"]) for r in (0, 2))
    assert second.id == f"{first.id}-r2"
    assert first.settings == second.settings


def test_repeats_of_a_sweep_run_in_turns_and_are_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "results"
    reports: list[str] = []
    monkeypatch.setattr(index, "refresh", lambda path: reports.append(path.name))
    swept = ["repeat=0,1", "defense=none,median", f"results_dir={folder}", "name=again", "federation.workers=1"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "-m", *SMALL, *swept])
    assert ended.value.code == 0
    assert reports == ["again"], "once, after the last"
    results = load(folder / "again")
    every = [*results.runs, *results.repeats]
    assert [(r.defense, r.repeat) for r in every] == [("none", 0), ("median", 0), ("median", 1), ("none", 1)]

    def numbers(path: Path) -> list[str]:
        kept = (path / "metrics.jsonl").read_text().splitlines()
        return [x for x in kept if not json.loads(x)["metric"].endswith(("_seconds", "memory_bytes"))]

    for repeat in results.repeats:
        first = next(r for r in results.runs if r.arm_key == repeat.arm_key)
        assert numbers(first.path) == numbers(repeat.path)
        assert repeat.manifest["repeat"] == 1
    assert (folder / "again" / "costs.txt").exists()
    assert "CPU s/round" in capsys.readouterr().out
