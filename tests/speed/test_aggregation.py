"""The benchmark of robust rules runs, and refuses to time one whose result is wrong."""

import re
from dataclasses import replace

import pytest
import torch

from privbench.benchmarks.speed import aggregation


def test_the_table_has_a_row_for_each_rule(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    # Memory is measured in processes of their own, each of which imports torch: one stands for all.
    grown = aggregation.added("median", 7, 100_000, True)
    assert 0 <= grown < 10
    monkeypatch.setattr(aggregation, "added", lambda *_: grown)
    aggregation.main(["--cohorts", "7", "10", "--sizes", "50", "--repeats", "1"])
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("rule"))
    assert lines[start].split() == ["rule", "n", "d", "privbench", "ByzFL", "ratio", "memory/input", "ByzFL"]
    rows = [line.split() for line in lines[start + 1 :]]
    assert [row[:3] for row in rows] == [[name, n, "50"] for n in ("7", "10") for name in aggregation.CONTESTS]
    for _, _, _, ours, theirs, ratio, *memory in rows:
        assert float(ours) >= 0
        assert float(theirs) >= 0
        assert re.fullmatch(r"\d+\.\dx", ratio)
        assert memory == [f"{grown:.2f}"] * 2


def test_some_rules_by_time_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(aggregation, "added", lambda *_: pytest.fail("memory was measured"))
    aggregation.main(["--cohorts", "5", "--sizes", "20", "30", "--repeats", "1", "--rules", "krum", "--no-memory"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("krum")]
    assert [row[1:3] for row in rows] == [["5", "20"], ["5", "30"]]
    assert {len(row) for row in rows} == {6}


@pytest.mark.parametrize("name", [n for n, contest in aggregation.CONTESTS.items() if contest.same])
@pytest.mark.parametrize("n", [10, 11])
def test_a_wrong_result_is_not_timed(name: str, n: int, monkeypatch: pytest.MonkeyPatch):
    aggregation.check(name, n, 100)
    honest = aggregation.CONTESTS[name]

    def wrong(x: torch.Tensor, f: int) -> torch.Tensor:
        return honest.ours(x, f) + torch.nn.functional.one_hot(torch.tensor(3), x.shape[1])

    monkeypatch.setitem(aggregation.CONTESTS, name, replace(honest, ours=wrong))
    monkeypatch.setattr(aggregation, "seconds", lambda *_: pytest.fail("it was timed"))
    with pytest.raises(AssertionError, match=rf"{name}: results differ by \d\.\de[-+]\d+ of the largest entry"):
        aggregation.main(["--cohorts", str(n), "--sizes", "100", "--rules", name, "--no-memory"])


def test_the_least_of_repeats_that_take_turns():
    calls: list[str] = []
    times = aggregation.seconds([lambda: calls.append("a"), lambda: calls.append("b")], repeats=2)
    assert calls == ["a", "b"] * 3, "a turn that doesn't count, and two that do"
    assert all(0 <= t < float("inf") for t in times)
