"""The benchmark of secure aggregation runs, and refuses to time a sum that is wrong."""

import sys
from dataclasses import replace
from typing import Any

import pytest

from privbench.benchmarks.speed import secagg
from privbench.defenses.channel import SecAgg


def test_costs_are_those_of_the_protocol(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    ours = {name: secagg.contenders()[name] for name in ("plaintext", "secagg")}
    monkeypatch.setattr(secagg, "contenders", lambda: ours)
    monkeypatch.setattr(
        sys, "argv", ["secagg", "--clients", "5", "--sizes", "1000", "--lost", "0", "1", "--repeats", "1"]
    )
    secagg.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| 1000")]
    assert [(row[1], row[2]) for row in rows] == [("0", "plaintext"), ("0", "secagg"), ("1", "secagg")]
    # An update of four bytes a coordinate, its weight and records, keys, sealed shares and shares.
    assert [row[8] for row in rows[:2]] == ["4000", str(4 * 1002 + 64 + 4 * 80 + 5 * 32)]
    assert rows[1][10].rstrip(" |") == str(5 * 64 + 4 * 80 + 1)


def test_a_wrong_sum_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    def wrong(work: secagg.Work) -> Any:
        cost = secagg.ours(SecAgg(), work)
        return replace(cost, mean=cost.mean + 1)

    monkeypatch.setattr(secagg, "contenders", lambda: {"secagg": wrong})
    monkeypatch.setattr(sys, "argv", ["secagg", "--clients", "4", "--sizes", "10", "--lost", "0", "--repeats", "1"])
    with pytest.raises(SystemExit, match="secagg gives another mean"):
        secagg.main()
