"""Growth: exponents are those of the points, what can't be run is named, and a wrong mean isn't timed."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privbench.benchmarks.speed import growth
from privbench.benchmarks.speed.growth import Line
from privbench.benchmarks.speed.growth_figure import apart
from privbench.benchmarks.speed.secagg import Work
from privbench.defenses.channel import SecAgg
from privbench.defenses.secagg.parameters import limits


def test_exponents_are_those_of_the_largest_points():
    line = Line("none", "clients", 5, {10: (9.0, 1.0), 20: (1.0, 2.0), 40: (2.0, 8.0), 80: (4.0, 32.0)})
    assert line.exponent("client") == pytest.approx(1.0)
    assert line.exponent("server") == pytest.approx(2.0)
    line.points = {10: (1e-6, 1.0), 20: (1e-6, 1.0)}
    assert line.exponent("client") is None, "too short to be told from nothing"
    assert line.exponent("server") is None, "too few"


def test_the_next_point_is_expected_by_the_growth_so_far():
    line = Line("none", "parameters", 5, {10: (0.0, 1.0), 20: (0.0, 4.0)})
    assert line.expected(40) == pytest.approx(16)
    assert line.expected(2000) == pytest.approx(40_000)
    line = Line("none", "parameters", 10, {1: (1.0, 1.0), 10: (10.0, 10.0)})
    assert line.expected(20) == pytest.approx(220), "ten clients and the server"
    line = Line("none", "clients", 5, {10: (1.0, 0.0), 20: (1.0, 0.0)})
    assert line.expected(40) == pytest.approx(40), "every client costs as much"
    assert Line("none", "clients", 5, {10: (1.0, 0.0)}).expected(10**6) == 0


def test_what_memory_or_time_forbids_is_left_out_by_name(monkeypatch: pytest.MonkeyPatch):
    # Room for 5 clients of 1000 parameters, not of 100,000 under every arm.
    monkeypatch.setattr(growth, "available", lambda: 10**7)
    asked: list[tuple[str, int]] = []

    def measured(name: str, work: Work, repeats: int) -> tuple[float, float]:
        asked.append((name, work.size))
        return 0.0, work.size / 1000

    monkeypatch.setattr(growth, "measure", measured)
    sizes = [1000, 10_000, 100_000, 10**9]
    none, secagg = growth.grow(["none", "secagg"], "parameters", sizes, 5, 1, most=50.0)
    assert sorted(none.points) == [1000, 10_000]
    assert none.skipped[100_000] == "time: about 100 CPU seconds a round, 50 at most"
    assert secagg.skipped[100_000].startswith("memory: about 0.0 GiB")
    assert none.skipped[10**9] == "memory: not even the updates fit"
    assert {size for _, size in asked} == {100, 1000, 10_000}
    said = growth.text([none, secagg])
    assert "skipped: none at 100,000 parameters: time: about" in said


def test_every_arm_is_measured_and_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arms = [name for name in growth.ARMS if name != "tee"]
    growth.main(["--clients", "5", "6", "--sizes", "50", "--repeats", "1", "--arms", *arms, "--out", str(tmp_path)])
    out = capsys.readouterr().out
    assert "CPU seconds of one client, by clients" in out
    assert "CPU seconds of the server, by parameters" in out
    assert {p.name for p in tmp_path.iterdir()} == {"growth.txt", "growth.csv", "growth.png", "growth.pdf"}
    rows = [*csv.DictReader((tmp_path / "growth.csv").read_text().splitlines())]
    assert [(r["arm"], r["axis"], r["x"]) for r in rows] == [
        *((arm, "clients", x) for arm in arms for x in ("5", "6")),
        *((arm, "parameters", "50") for arm in arms),
    ]
    assert all(float(r["server_cpu_seconds"]) > 0 for r in rows)


def test_the_attested_channel_is_measured_with_its_guest():
    client, server = growth.measure("tee", Work(5, 100), 1)
    assert 0 < client < server


def test_a_wrong_mean_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    honest = growth.ours

    def wrong(*given: Any, **more: Any) -> Any:
        cost = honest(*given, **more)
        return replace(cost, mean=cost.mean + 1)

    monkeypatch.setattr(growth, "ours", wrong)
    with pytest.raises(SystemExit, match="secagg gives another mean at 5 clients, 10 parameters"):
        growth.measure("secagg", Work(5, 10), 1)


def test_labels_are_moved_apart_as_little_as_can_be():
    assert apart(np.array([0.0, 10.0, 20.0]), 5) == pytest.approx([0, 10, 20])
    assert apart(np.array([0.0, 0.0, 30.0]), 5) == pytest.approx([-2.5, 2.5, 30])
    assert apart(np.array([0.0, 1.0, 2.0, 2.0]), 2) == pytest.approx([-1.75, 0.25, 2.25, 4.25])
    assert len(apart(np.zeros(0))) == 0


def test_secure_aggregation_has_room_for_the_most_clients():
    channel = growth.ARMS["secagg"].channel()
    assert isinstance(channel, SecAgg)
    records = tuple(update.records for update in Work(10_000, 1).updates)
    assert limits(channel.encoding, records) is not None
