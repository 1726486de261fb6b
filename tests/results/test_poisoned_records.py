"""Success against the number of poisoned records."""

from typing import Any

import pytest

from privbench.benchmarks.results.load import load
from privbench.benchmarks.results.poisoned_records import ASR, curves, draw, records_table
from privbench.benchmarks.results.report import report
from privbench.benchmarks.results.table import floor, table


def poisoned(fake, records: int, asr: float, kind: str = "Patch", seed: int = 0, defense: str = "none", **trigger: Any):
    """A run whose rate is ``asr`` at the end, but for the fake's own 1/32."""
    settings = {"poisoning.records": records, "task.trigger": {"_target_": kind, **trigger}}
    config = {"task": {"classes": 10, "trigger": {"_target_": f"privbench.{kind}", **trigger}}}
    more: dict[str, Any] = {"config": config, "training_records": 200, "poisoner": {"clients": [0]}}
    return fake.run(defense, "backdoor", seed=seed, asr=asr / (1 - 2.0**-5), settings=settings, **more)


def values(points) -> dict[int, float | None]:
    return {p.records: round(p.value(ASR).mean, 4) for p in points}


@pytest.fixture
def three(fake):
    for seed in (0, 1):
        for k, rate in ((4, 0.6), (0, 0.02), (1, 0.3)):
            poisoned(fake, k, rate, seed=seed, place="corner")
            poisoned(fake, k, rate / 2, seed=seed, place="random")
            for record in (5, 8):
                poisoned(fake, k, rate if record == 5 else 0.0, "Instance", seed=seed, record=record)
    return fake


def test_a_line_a_trigger_ascending(three):
    (lines,) = curves(load(three.root))
    assert set(lines) == {"Patch, place=corner", "Patch, place=random", "Instance"}
    assert values(lines["Patch, place=corner"]) == {0: 0.025, 1: 0.305, 4: 0.605}
    assert values(lines["Patch, place=random"]) == {0: 0.015, 1: 0.155, 4: 0.305}


def test_given_records_are_averaged_seed_by_seed(three):
    (lines,) = curves(load(three.root))
    assert values(lines["Instance"]) == {0: 0.015, 1: 0.155, 4: 0.305}
    last = lines["Instance"][-1].value(ASR)
    assert last.seeds == 2
    assert last.values == pytest.approx((0.3, 0.31))


def test_a_given_record_that_lacks_leaves_no_mean(fake):
    for k in (0, 1, 2):
        for record in (5, 8)[: 1 if k == 2 else 2]:
            poisoned(fake, k, 0.5, "Instance", record=record)
    (lines,) = curves(load(fake.root))
    assert [p.value(ASR).mean is None for p in lines["Instance"]] == [False, False, True]
    assert "Instance without a number at 2" in " ".join(draw(lines).get_suptitle().split())


def test_defenses_have_lines_of_their_own(fake):
    for k in (0, 1, 2):
        poisoned(fake, k, 0.4, size=2)
        poisoned(fake, k, 0.1, defense="krum", size=2)
    (lines,) = curves(load(fake.root))
    assert set(lines) == {"Patch, none", "Patch, krum"}


def test_two_numbers_are_no_curve(fake):
    poisoned(fake, 0, 0.1)
    poisoned(fake, 1, 0.2)
    assert list(curves(load(fake.root))) == []
    assert records_table(load(fake.root)) is None


def test_the_figure_begins_with_the_floor(three):
    (lines,) = curves(load(three.root))
    figure: Any = draw(lines)
    above, below = figure.axes
    assert [t.get_text() for t in below.get_xticklabels()] == ["0", "1", "4"]
    assert above.get_xscale() == "log"
    assert (above.get_ylabel(), below.get_ylabel()) == ("attack success rate (%)", "accuracy (%)")
    said = " ".join(figure.get_suptitle().split())
    assert "2 seeds" in said
    assert "Instance: 2 records, a run each" in said
    (legend,) = figure.legends
    assert {t.get_text() for t in legend.get_texts()} == set(lines)


def test_the_table_has_shares_and_runs(three):
    found = records_table(load(three.root))
    assert found is not None
    rows = {(r["line"], r["poisoned_records"]): r for r in found.records}
    assert rows["Instance", 4]["runs"] == 4
    assert rows["Instance", 4]["share"] == 4 / 200
    assert rows["Patch, place=corner", 1]["asr"] == pytest.approx(0.305)
    assert "2" in found.text()


def test_a_report_writes_and_removes_it(fake):
    for k, rate in ((4, 0.6), (0, 0.02), (1, 0.3)):
        poisoned(fake, k, rate, place="corner")
    made = report(fake.root)
    assert made.poisoned_records is not None
    names = {f.name for f in made.files}
    assert {"asr_by_records.png", "asr_by_records.pdf", "poisoned_records.txt"} <= names
    assert {f.read_bytes() for f in report(fake.root).files} == {f.read_bytes() for f in made.files}


def test_no_poisoned_record_is_a_floor_where_there_is_no_run_without_a_poisoner(fake):
    for k in (0, 1):
        poisoned(fake, k, 0.5 * k)
    results = load(fake.root)
    found = {a.runs[0].settings["poisoning"]["records"]: floor(a, results) for a in results.arms()}
    assert [f.mean for f in found.values() if f] == [0.0, 0.0]
    assert not any(n.startswith("no floor") for n in table(results).notes)
