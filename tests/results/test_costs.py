"""Costs beside none: ratios are of pairs, with their interval; repeats are in no other mean."""

import json
from math import exp, log, sqrt
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from privbench.benchmarks.results.costs import cost_table, costs
from privbench.benchmarks.results.load import Refused, load
from privbench.benchmarks.results.report import report

DRIFT = (1.0, 1.5, 3.0)
"""By which each repeat finds the machine slower."""
FACTORS = (2.0, 2.2, 1.9)
"""What the defense costs in each, over none."""


def spent(path: Path, cpu: float, sent: float = 1000.0) -> None:
    """Add what rounds took: the first one much, the others about ``cpu``."""
    rows = []
    for number, factor in enumerate((10.0, 1.0, 0.9, 1.1, 1.0), start=1):
        where = {"round": number, "client": None, "adversary": None}
        rows.append({"metric": "cpu_seconds", **where, "value": cpu * factor})
        rows.append({"metric": "update_bytes", **where, "value": sent, "clients": [0, 1], "by_client": [sent, sent]})
    with (path / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def again(path: Path, repeat: int) -> Path:
    """The same run, measured once more."""
    copy = path.with_name(f"{path.name}-r{repeat}")
    copy.mkdir()
    manifest = json.loads((path / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "id": copy.name, "repeat": repeat}))
    lines = (path / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["metric"] not in ("cpu_seconds", "update_bytes")]
    (copy / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    return copy


@pytest.fixture
def measured(fake: Any) -> Any:
    """Runs without a defense and with one, three repeats each, on a machine that slows down."""
    for defense, factors, sent in (("none", (1.0,) * 3, 1000.0), ("dp_local", FACTORS, 4000.0)):
        first = fake.run(defense)
        for repeat, (slower, factor) in enumerate(zip(DRIFT, factors, strict=True)):
            spent(again(first, repeat) if repeat else first, slower * factor, sent)
    return fake


def test_a_ratio_is_of_pairs_so_that_drift_is_in_both(measured: Any):
    (setup,) = costs(load(measured.root))
    none, defense = setup
    assert none.ratios == {}
    assert none.values["cpu_seconds"].values == DRIFT, "the median of each run's rounds"
    found = defense.ratios["cpu_seconds"]
    logs = [log(f) for f in FACTORS]
    middle = sum(logs) / 3
    half = stats.t.ppf(0.975, 2) * sqrt(sum((x - middle) ** 2 for x in logs) / 2) / sqrt(3)
    assert found.mean == pytest.approx(exp(middle))
    assert (found.low, found.high) == pytest.approx((exp(middle - half), exp(middle + half)))
    assert found.pairs == 3
    assert str(defense.ratios["update_bytes"]) == "x4.00", "bytes don't vary"


def test_repeats_are_in_no_other_mean(measured: Any):
    results = load(measured.root)
    assert len(results.runs) == 2
    assert sorted(r.repeat for r in results.repeats) == [1, 1, 2, 2]
    assert [a.n for a in results.arms()] == [1, 1]
    assert set(results.frame()["repeat"]) == {0, 1, 2}
    made = report(measured.root)
    assert made.costs is not None
    assert (made.folder / "costs.tex").exists()
    rows = {r["defense"]: r for r in made.costs.records}
    assert (rows["dp_local"]["n"], rows["dp_local"]["repeats"]) == (3, 3)
    assert rows["dp_local"]["update_bytes_ratio"] == pytest.approx(4)
    assert rows["none"]["cpu_seconds_ratio"] is None
    text = (made.folder / "costs.txt").read_text()
    assert "x4.00" in text
    assert "times are of this machine" in text


def test_a_lost_repeat_leaves_its_arm_out(measured: Any):
    path = next(r.path for r in load(measured.root).repeats if r.defense == "dp_local")
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "status": "failed", "error": "no memory"}))
    with pytest.raises(Refused, match="1 of 3 runs failed: no memory"):
        costs(load(measured.root))
    kept, _ = load(measured.root).split()
    assert costs(kept) == []


def test_a_repeat_without_its_pair_has_no_ratio(measured: Any):
    lost = next(r.path for r in load(measured.root).repeats if r.defense == "none")
    for file in lost.iterdir():
        file.unlink()
    lost.rmdir()
    (setup,) = costs(load(measured.root))
    assert setup[1].ratios == {}


def on(path: Path, **machine: Any) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    whole = {"processor": "A", "cores": 8, "workers": 4, "device": "cpu"} | machine
    (path / "manifest.json").write_text(json.dumps({**manifest, "machine": whole}))


@pytest.mark.parametrize("other", [{"processor": "B"}, {"cores": 16}, {"workers": 2}, {"device": "cuda"}])
def test_times_of_different_machines_have_no_ratio(measured: Any, other: dict[str, Any]):
    """One repeat of the defense's was done elsewhere: bytes are the same there."""
    results = load(measured.root)
    for run in (*results.runs, *results.repeats):
        on(run.path, **other if (run.defense, run.repeat) == ("dp_local", 2) else {})
    (setup,) = costs(load(measured.root))
    assert set(setup[1].ratios) == {"update_bytes"}
    table = cost_table(load(measured.root))
    assert table is not None
    (said,) = [note for note in table.notes if "no ratio" in note]
    assert said.startswith("dp_local has no ratio of times and memory: 1 of 3 pairs")
    assert "(seed 0, repeat 2, on " in said
    assert "and none on A, 8 cores, 4 worker processes)" in said
    assert len([note for note in table.notes if note.startswith("measured on ")]) == 2


def test_repeats_may_be_of_several_machines_where_pairs_are_of_one(measured: Any):
    results = load(measured.root)
    for run in (*results.runs, *results.repeats):
        on(run.path, processor="ABC"[run.repeat])
    (setup,) = costs(load(measured.root))
    assert setup[1].ratios["cpu_seconds"].pairs == 3
    table = cost_table(load(measured.root))
    assert table is not None
    assert [note[12] for note in table.notes if note.startswith("measured on ")] == ["A", "B", "C"]


def test_without_measured_costs_there_is_no_table(fake: Any):
    fake.run("none")
    fake.run("dp_local")
    assert cost_table(load(fake.root)) is None
    spent(fake.run("krum"), 1.0)
    assert cost_table(load(fake.root)) is None, "nothing to compare it with"
