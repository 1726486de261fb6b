"""Utility, leakage, membership and backdoors against epsilon."""

import json
import shutil
from math import inf
from typing import Any

import pytest

from privbench.attacks.inference.membership import of_guessing
from privbench.benchmarks.results.frontier import REFERENCE, draw, frontier_table, panels
from privbench.benchmarks.results.load import load
from privbench.benchmarks.results.report import report
from privbench.benchmarks.results.table import table

from .conftest import line


def said(unit: str, epsilon: float | None) -> list[dict[str, Any]]:
    common = {"unit": unit, "epsilon": epsilon, "delta": 1e-3, "simulated": True, "adjacency": "add_remove"}
    return [{**common, "adversary": a} for a in ("server_operator", "model_recipient")]


def private(fake, epsilon: float, psnr: float, unit: str = "record", defense: str = "dp_local"):
    settings = {"defense.privacy.epsilon": epsilon}
    path = fake.run(defense, leakage=psnr, settings=settings, privacy=said(unit, epsilon))
    with open(path / "metrics.jsonl", "a") as file:
        row = line("membership_advantage", epsilon / 100, round=5, adversary="model_recipient")
        file.write(json.dumps(row) + "\n")
    return path


def sweep(fake):
    for epsilon, psnr in ((1.0, 6.0), (8.0, 12.0)):
        private(fake, epsilon, psnr)
    fake.run("none", leakage=24.0)
    fake.run("clip_only", leakage=20.0, privacy=said("record", None))
    return load(fake.root)


def points(panel) -> dict[str, list[tuple[float, float | None]]]:
    return {name: [(x, e.mean) for x, _, e in found] for name, found in panel.lines.items()}


def test_measures_are_rows_and_kinds_of_epsilon_are_columns(fake):
    (found,) = panels(sweep(fake))
    named = {(p.measure.name, p.adversary): p for p in found}
    assert {p.unit for p in found} == {"record"}
    assert points(named["psnr_db", "server_operator"])["dp_local"] == [(1, 6.5), (8, 12.5)]
    assert points(named["psnr_db", "server_operator"])["none"] == [(inf, 24.5)]
    assert points(named["accuracy", "server_operator"])["clip_only"] == [(inf, 78.0)]
    assert points(named["membership_advantage", "model_recipient"]) == {"dp_local": [(1, 0.01), (8, 0.08)]}
    assert ("membership_advantage", "server_operator") not in named
    assert named["accuracy", "server_operator"].reference == 10
    assert named["psnr_db", "server_operator"].reference == 9.5


def test_the_figure_has_a_tick_for_each_column(fake):
    (found,) = panels(sweep(fake))
    figure: Any = draw(found)
    shown = [a for a in figure.axes if a.get_visible()]
    assert sum(a.get_xlabel() != "" for a in shown) == 2
    (legend,) = figure.legends
    assert {t.get_text() for t in legend.get_texts()} == {"none", "clip_only", "dp_local", REFERENCE}
    assert "simulated" in figure.get_suptitle()


def test_backdoors_are_of_poisoned_runs_and_nothing_else_is(fake):
    for epsilon in (1.0, 8.0):
        private(fake, epsilon, 10.0)
        settings = {"defense.privacy.epsilon": epsilon}
        fake.run("dp_local", "backdoor", settings=settings, privacy=said("record", epsilon))
    (found,) = panels(load(fake.root))
    asr = [p for p in found if p.measure.name == "asr"]
    assert asr
    assert all(a.poisoned for p in asr for found in p.lines.values() for _, a, _ in found)
    others = [a for p in found if p.measure.name != "asr" for f in p.lines.values() for _, a, _ in f]
    assert not any(a.poisoned for a in others)


def test_each_poisoner_has_a_row_of_its_own(fake):
    for epsilon in (1.0, 8.0):
        private(fake, epsilon, 10.0)
        for poisoner, rate in (("backdoor", 0.2), ("model_replacement", 0.9)):
            settings = {"defense.privacy.epsilon": epsilon}
            fake.run("dp_local", poisoner, settings=settings, privacy=said("record", epsilon), asr=rate)
    results = load(fake.root)
    (found,) = panels(results)
    asr = {p.measure.attack: p for p in found if p.measure.name == "asr" and p.adversary == "server_operator"}
    assert {name: points(p)["dp_local"] for name, p in asr.items()} == {
        "backdoor": [(1, pytest.approx(19.375)), (8, pytest.approx(19.375))],
        "model replacement": [(1, pytest.approx(87.1875)), (8, pytest.approx(87.1875))],
    }
    table = frontier_table(results)
    assert table is not None
    assert {"asr backdoor", "asr model replacement"} <= set(table.records[0])


def test_a_row_has_the_seeds_of_its_accuracy_and_others_are_named(fake):
    for epsilon in (1.0, 8.0):
        settings: dict[str, Any] = {"defense.privacy.epsilon": epsilon}
        for seed in range(3):
            fake.run("dp_local", seed=seed, leakage=9.0, settings=settings, privacy=said("record", epsilon))
        # Another experiment's runs, which attack no update: seeds are its own.
        settings["leakage._target_"] = "privbench.Other"
        fake.run("dp_local", "backdoor", settings=settings, privacy=said("record", epsilon))
    table = frontier_table(load(fake.root))
    assert table is not None
    assert all(row[5] == "n=3" for row in table.rows)
    for record in table.records:
        assert record["accuracy_half_width"] is not None
        assert record["seeds"] == record["accuracy_seeds"] == "0 1 2"
        assert (record["asr_seeds"], record["asr_half_width"]) == ("0", None)
    assert {r["psnr_db_seeds"] for r in table.records} == {"0 1 2", None}, "one adversary was attacked"
    assert {row[-1] for row in table.rows} == {"87.2 (seed 0)"}
    assert not any("seed" in cell for row in table.rows for cell in row[:-1])


def test_each_attack_has_a_row_of_its_own(fake):
    for epsilon in (1.0, 8.0):
        for name, found in (("lira", 0.6), ("loss_threshold", 0.05)):
            settings = {"defense.privacy.epsilon": epsilon, "inference.attack": name}
            choices = {"task": "mnist5k", "defense": "dp_local", "leakage": "inverting_gradients", "inference": name}
            path = fake.run("dp_local", settings=settings, privacy=said("record", epsilon), choices=choices)
            row = line("membership_advantage", found, round=5, adversary="model_recipient", members=50, non_members=50)
            with open(path / "metrics.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")
    (found,) = panels(load(fake.root))
    own = {p.measure.attack: p for p in found if p.measure.name == "membership_advantage"}
    assert {name: points(p)["dp_local"] for name, p in own.items()} == {
        "lira": [(1, 0.6), (8, 0.6)],
        "loss threshold": [(1, 0.05), (8, 0.05)],
    }
    assert {p.reference for p in own.values()} == {of_guessing(50, 50)}
    table = frontier_table(load(fake.root))
    assert table is not None
    assert "lira 0.125" in table.text()
    assert table.records[0]["membership_advantage lira_reference"] == of_guessing(50, 50)


def test_a_run_that_stopped_at_its_budget_is_named(fake):
    results = sweep(fake)
    assert "budget" not in table(results).text()
    run = next(r for r in results.runs if r.statements)
    said = {**run.manifest, "stopped": "stopped after round 3 of 5: the privacy budget is spent"}
    (run.path / "manifest.json").write_text(json.dumps(said))
    for found in (table(load(fake.root)), frontier_table(load(fake.root))):
        assert found is not None
        (note,) = [n for n in found.notes if "budget" in n]
        assert run.defense in note
        assert "after round 3 of 5" in note


def test_units_are_not_mixed(fake):
    for epsilon in (1.0, 8.0):
        private(fake, epsilon, 10.0)
        private(fake, epsilon, 9.0, unit="client", defense="krum")
    (found,) = panels(load(fake.root))
    for panel in found:
        assert set(panel.lines) == ({"krum"} if panel.unit == "client" else {"dp_local"})


def test_the_table_has_a_row_for_each_kind_of_epsilon(fake):
    table = frontier_table(sweep(fake))
    assert table is not None
    rows = [r for r in table.records if r["defense"] == "dp_local" and r["adversary"] == "model_recipient"]
    assert [(r["epsilon"], r["unit"], r["adjacency"]) for r in rows] == [
        (1.0, "record", "add_remove"),
        (8.0, "record", "add_remove"),
    ]
    assert all(r["simulated_population"] is False for r in table.records)
    assert rows[0]["membership_advantage"] == 0.01


def test_one_epsilon_is_no_frontier_and_an_old_figure_goes(fake):
    sweep(fake)
    written = {f.name for f in report(fake.root).files}
    assert {"frontier.txt", "frontier.csv", "frontier.tex", "frontier.png"} <= written
    other = [p for p in fake.root.glob("runs/*") if '"epsilon": 8' in (p / "manifest.json").read_text()]
    assert other
    for path in other:
        shutil.rmtree(path)
    assert frontier_table(load(fake.root)) is None
    report(fake.root)
    assert not list(fake.root.rglob("frontier*"))
