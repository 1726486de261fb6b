"""Shares of parts add up to the whole, and bars end at the ratio to none."""

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.patches import Rectangle

from privbench.benchmarks.results.cost_shares import OTHER, PARTS, cost_shares, share_table, shares
from privbench.benchmarks.results.load import load
from privbench.benchmarks.results.report import report

SPANS = {"local_training": 0.5, "per_sample_gradients": 0.2, "local_noise": 0.04, "release": 0.06, "round": 0.1}


def spent(path: Path, cpu: float, spans: dict[str, float]) -> Path:
    """Add rounds of ``cpu`` seconds in these shares; the first one is all waiting."""
    rows = []
    for number in (1, 2, 3):
        where = {"round": number, "client": None, "adversary": None}
        rows.append({"metric": "cpu_seconds", **where, "value": cpu})
        parts = spans if number > 1 else {"waiting": 1.0, "round": 0.0}
        rows += [{"metric": f"span_{n}_cpu_seconds", **where, "value": cpu * x} for n, x in parts.items()]
    with (path / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def test_shares_are_of_rounds_after_the_first_and_add_up(fake: Any):
    spent(fake.run("none"), 2.0, SPANS)
    found = shares(load(fake.root).runs[0])
    assert found is not None
    wanted = dict.fromkeys((*PARTS, OTHER), 0.0)
    wanted |= {"local training": 0.5, "per-sample gradients": 0.2, "noise, clipping": 0.1, OTHER: 0.2}
    assert found == pytest.approx(wanted)


def test_parts_of_processes_that_are_gone_do_not_exceed_the_whole(fake: Any):
    spent(fake.run("none"), 1.0, {name: 2 * share for name, share in SPANS.items()})  # parts of 1.6 in all
    found = shares(load(fake.root).runs[0])
    assert found is not None
    assert sum(found.values()) == pytest.approx(1.0)
    assert found["local training"] == pytest.approx(0.5 / 0.8)
    assert found[OTHER] == pytest.approx(0.0, abs=1e-12)


def test_a_bar_is_as_long_as_its_ratio(fake: Any):
    spent(fake.run("none"), 2.0, SPANS)
    spent(fake.run("dp_local"), 5.0, {**SPANS, "per_sample_gradients": 0.4})
    figure = cost_shares(load(fake.root))
    assert figure is not None
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["none", "dp_local"]
    ends: dict[int, float] = {}
    for bar in axes.patches:
        assert isinstance(bar, Rectangle)
        row = round(bar.get_y() + bar.get_height() / 2)
        ends[row] = max(ends.get(row, 0.0), bar.get_x() + bar.get_width())
    assert ends[0] == pytest.approx(1.0)
    assert ends[1] == pytest.approx(2.5)
    assert {t.get_text() for t in figure.legends[0].get_texts()} == {*PARTS, OTHER}
    assert "no interval" in figure.get_suptitle()


def test_a_report_writes_both_and_takes_them_away_again(fake: Any):
    paths = [spent(fake.run(defense), cpu, SPANS) for defense, cpu in (("none", 1.0), ("krum", 1.5))]
    made = report(fake.root)
    names = {f.name for f in made.files}
    assert {"cost_shares.txt", "cost_shares.csv", "cost_shares.tex", "cost_shares.png", "cost_shares.pdf"} <= names
    for path in paths:
        lines = (path / "metrics.jsonl").read_text().splitlines()
        kept = [line for line in lines if not json.loads(line)["metric"].startswith("span_")]
        (path / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    report(fake.root)
    assert not list(made.folder.rglob("cost_shares*"))
    assert (made.folder / "costs.txt").exists(), "what rounds took is known without their parts"


def test_without_spans_or_a_run_to_compare_with_nothing_is_shown(fake: Any):
    spent(fake.run("krum"), 1.0, SPANS)
    spent(fake.run("dp_local"), 1.0, SPANS)
    results = load(fake.root)
    assert cost_shares(results) is None, "nothing without a defense"
    table = share_table(results)
    assert table is not None
    assert [r["share[local training]_mean"] for r in table.records] == pytest.approx([0.5, 0.5])
