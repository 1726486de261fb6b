"""Whom a rule dropped, in the table: means over rounds and seeds of rates that are known."""

import json
from pathlib import Path

import pytest

from privbench.benchmarks.results.load import load
from privbench.benchmarks.results.table import table

TRUE, FALSE = "filter_true_positive_rate", "filter_false_positive_rate"


def dropping(path: Path, true: list[float], false: list[float]) -> None:
    """Add the rates of rounds 1, 2, ... to a run."""
    with (path / "metrics.jsonl").open("a") as file:
        for metric, values in ((TRUE, true), (FALSE, false)):
            for number, value in enumerate(values, 1):
                row = {"metric": metric, "round": number, "client": None, "adversary": None, "value": value}
                file.write(json.dumps(row) + "\n")


def attacked(fake, seed: int, f: int = 2) -> Path:
    config = {"defense": {"aggregation": {"_target_": "privbench.MultiKrum", "f": f}}}
    return fake.run("krum", "backdoor", seed, config=config, poisoner={"clients": [8, 9], "trigger_share": None})


def test_rates_are_means_over_rounds_and_seeds(fake):
    dropping(attacked(fake, 0), [1.0, 0.5], [0.0, 0.25, 0.125, 0.125])
    dropping(attacked(fake, 1), [0.75, 0.25], [0.0, 0.0, 0.0, 0.0])
    for seed in (0, 1):
        fake.run("none", "backdoor", seed)
    found = table(load(fake.root))
    headers = [h.replace("\n", " ") for h in found.headers]
    cells = {row[0]: dict(zip(headers, row, strict=True)) for row in found.rows}
    assert cells["krum"]["attackers dropped (%)"].startswith("62.5 ±")
    assert cells["krum"]["honest dropped (%)"].startswith("6.2 ±")
    assert cells["none"]["attackers dropped (%)"] == "—", "a mean drops nobody"
    record = next(r for r in found.records if r["defense"] == "krum")
    assert record[f"{TRUE}_mean"] == pytest.approx(0.625)
    assert record[f"{FALSE}_mean"] == pytest.approx(0.0625)
    assert (record["told_f"], record["attackers"]) == (2, 2)
    assert not any("another number" in note for note in found.notes)


def test_a_rule_that_was_told_a_wrong_number_is_named(fake):
    dropping(attacked(fake, 0, f=5), [1.0], [0.3])
    assert any("than there are: krum / backdoor (f=5 of 2)." in note for note in table(load(fake.root)).notes)


def test_without_such_a_rule_there_is_no_column(fake):
    fake.run("none", "backdoor")
    dropping(fake.run("krum"), [], [0.1])
    found = table(load(fake.root))
    assert not any("dropped" in header for header in found.headers), "nobody attacks where somebody is dropped"
    assert not any("dropped" in note for note in found.notes)
