"""The table of leakage."""

import csv
import io
import json

import pytest

from privbench.benchmarks.results.arms import Estimate
from privbench.benchmarks.results.leakage_table import leakage_table, verdict
from privbench.benchmarks.results.load import Refused, load
from privbench.benchmarks.results.report import report


def rows(results):
    found = leakage_table(results)
    assert found is not None
    headers = [h.replace("\n", " ") for h in found.headers]
    return {r[0]: dict(zip(headers, r, strict=True)) for r in found.rows}, found


def append(path, *lines):
    with (path / "metrics.jsonl").open("a") as file:
        for line in lines:
            file.write(json.dumps({"round": 1, "client": 0, "adversary": "server_operator", **line}) + "\n")


def test_scores_stand_beside_their_controls(fake):
    fake.run(leakage=19.5)
    shown, found = rows(load(fake.root))
    row = shown["none"]
    assert (row["seen by"], row["n"], row["attacks"]) == ("server operator", "n=1", "2 of 2")
    assert row["PSNR (dB)"] == "20.0"
    assert row["best trivial PSNR"] == "9.5\nmean colour"
    assert (row["median"], row["worst"], row["best"], row["oracle"]) == ("19.5", "16.5", "22.5", "21.0")
    assert (row["≥ 20 dB (%)"], row["≥ 25 dB (%)"]) == ("50.0", "0.0")
    assert (row["rank (chance)"], row["identified (%, chance)"]) == ("1.5\n(5.5)", "50.0\n(10.0)")
    assert (row["same label"], row["labels (%, majority)"]) == ("7.5", "50.0\n(25.0)")
    assert row["better than guessing"] == "yes (n=1)"
    assert any(n.startswith("yes (n=1): better") for n in found.notes)
    assert "LPIPS" not in row
    assert not any(n.startswith("NO:") for n in found.notes)


def test_seeds_have_an_interval_and_are_pooled_for_the_rest(fake):
    for seed, psnr in enumerate((18.0, 20.0)):
        fake.run(leakage=psnr, seed=seed)
    row = rows(load(fake.root))[0]["none"]
    assert row["PSNR (dB)"] == "19.5 ± 12.7"
    assert (row["median"], row["worst"], row["best"]) == ("19.0", "15.0", "23.0")
    assert (row["attacks"], row["better than guessing"]) == ("4 of 4", "unclear")


def test_an_attack_no_better_than_guessing_is_flagged(fake):
    fake.run("none", leakage=20.0)
    fake.run("dp_local", leakage=8.0)
    shown, found = rows(load(fake.root))
    assert {d: r["better than guessing"] for d, r in shown.items()} == {"none": "yes (n=1)", "dp_local": "NO"}
    assert any(n.startswith("NO:") for n in found.notes)


def test_a_failed_attack_leaves_no_mean_and_is_counted(fake):
    path = fake.run(leakage=20.0)
    append(path, {"metric": "psnr_db", "client": 2, "value": None, "status": "failed", "reason": "it returned NaN."})
    shown, found = rows(load(fake.root))
    row = shown["none"]
    assert (row["attacks"], row["PSNR (dB)"], row["better than guessing"]) == ("2 of 3", "failed", "—")
    assert "none, server operator: it returned NaN." in found.notes
    assert found.records[0]["psnr_db_mean"] is None
    assert (found.records[0]["attacks"], found.records[0]["attacks_with_a_value"]) == (3, 2)


def test_nothing_to_attack_is_no_attack(fake):
    fake.run("none", leakage=20.0)
    fake.run("secure_aggregation", leakage="not_applicable")
    row = rows(load(fake.root))[0]["secure_aggregation"]
    assert (row["attacks"], row["PSNR (dB)"], row["median"]) == ("n/a", "n/a", "—")


def test_victims_with_nothing_to_attack_are_counted_beside_the_others(fake):
    """Their record's row lacks them, so that it is over other victims than an arm that lost none."""
    fake.run("none", leakage=20.0)
    path = fake.run("dp_local", leakage=12.0)
    reason = "client 2 used no record in round 1"
    lost = {"metric": "psnr_db", "value": None, "status": "not_applicable", "reason": reason}
    append(path, *({**lost, "client": c} for c in (2, 3, 4)))
    shown, found = rows(load(fake.root))
    assert (shown["none"]["attacks"], shown["dp_local"]["attacks"]) == ("2 of 2", "2 of 2\n+ 3 n/a")
    assert shown["dp_local"]["PSNR (dB)"] == "12.5"
    assert any(n.startswith("+ n/a: ") for n in found.notes)
    assert f"dp_local, server operator: {reason}." in found.notes
    assert [r["victims_not_applicable"] for r in found.records] == [0, 3]


def test_the_best_guess_of_an_error_is_the_least(fake):
    path = fake.run(leakage=0.9, signals=True)
    append(path, *({"metric": f"mse_{g}", "value": v} for g, v in (("class_mean", 0.8), ("other_record", 2.0))))
    append(path, *({"metric": f"mse_{g}", "value": v} for g, v in (("worst", 3.0), ("best", 0.1), ("median", 0.9))))
    shown, found = rows(load(fake.root))
    row = shown["none"]
    assert (row["MSE"], row["best trivial MSE"]) == ("0.900", "0.800\nclass mean")
    assert (row["worst"], row["best"]) == ("3.000", "0.100")
    assert row["better than guessing"] == "NO"
    assert not any("dB" in h or "SSIM" in h for h in found.headers)


def test_labels_that_were_told_are_not_found(fake):
    path = fake.run(leakage=20.0)
    text = (path / "metrics.jsonl").read_text().replace("from_gradient", "known")
    (path / "metrics.jsonl").write_text(text)
    assert rows(load(fake.root))[0]["none"]["labels (%, majority)"] == "known"


def test_lpips_has_a_column_where_it_was_measured(fake):
    append(fake.run("none", leakage=20.0), {"metric": "lpips", "value": 0.25})
    fake.run("krum", leakage=20.0)
    shown, _ = rows(load(fake.root))
    assert (shown["none"]["LPIPS"], shown["krum"]["LPIPS"]) == ("0.250", "—")


def test_files_are_beside_the_main_table(fake):
    fake.run(leakage=20.0)
    made = report(fake.root)
    assert {"leakage.txt", "leakage.csv", "leakage.tex"} <= {f.name for f in made.files}
    assert made.leakage is not None
    (row,) = csv.DictReader(io.StringIO(made.leakage.csv()))
    assert float(row["psnr_db_mean"]) == 20.5
    assert float(row["gain_mean"]) == 11.0
    assert row["best_trivial"] == "mean_colour"
    assert "mse_mean" not in row, "the error of images is in other units than that of signals"
    assert r"$\pm$" not in made.leakage.latex()
    assert r"9.5 mean colour" in made.leakage.latex()


def test_without_attacks_there_is_no_table_and_an_old_one_goes(fake):
    path = fake.run(leakage=20.0)
    folder = report(fake.root).folder
    assert (folder / "leakage.txt").exists()
    (path / "metrics.jsonl").write_text("")
    assert report(fake.root).leakage is None
    assert not (folder / "leakage.txt").exists()


def test_it_refuses_what_cannot_be_averaged(fake):
    fake.run(status="failed")
    with pytest.raises(Refused):
        leakage_table(load(fake.root))


def test_verdicts():
    assert verdict(None) == "—"
    assert verdict(Estimate((1.0, 1.1, 0.9), "ok", 3)) == "yes"
    assert verdict(Estimate((1.0, -0.5, 0.9), "ok", 3)) == "unclear"
    assert verdict(Estimate((0.0,), "ok", 1)) == "NO"
    assert verdict(Estimate((0.01,), "ok", 1)) == "yes (n=1)", "no interval, so nothing is sure"
