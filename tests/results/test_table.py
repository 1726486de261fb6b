import csv
import io
import json
from math import inf

import pytest

from privbench.benchmarks.results.load import Refused, load
from privbench.benchmarks.results.table import table
from privbench.benchmarks.results.tabular import at_most, escape


def cells(found, row=0):
    return dict(zip((h.replace("\n", " ") for h in found.headers), found.rows[row], strict=True))


def test_one_arm_says_n_1_and_has_no_interval(fake):
    fake.run(accuracy=0.8, rounds=20)
    found = table(load(fake.root))
    assert cells(found)["n"] == "n=1"
    assert cells(found)["accuracy (%)"] == "80.0"
    assert "n=1: one seed, so no interval." in found.notes


def test_what_separated_the_parties_is_said_where_one_guest_held_them(fake):
    fake.run()
    assert not any("same_guest" in n for n in table(load(fake.root)).notes)
    fake.run("krum", isolation="same_guest")
    assert "isolation same_guest (all parties in one guest, the owner outside): krum." in table(load(fake.root)).notes


def test_seeds_show_their_interval(fake):
    for seed in range(3):
        fake.run(accuracy=0.8, rounds=20, seed=seed)
    assert cells(table(load(fake.root)))["accuracy (%)"] == "80.4 ± 1.0"


def test_the_floor_is_the_twin_s_false_trigger_rate(fake):
    fake.run("krum", "patch")
    fake.run("krum")
    found = table(load(fake.root))
    rows = {r[1]: cells(found, i) for i, r in enumerate(found.rows)}
    assert rows["patch"]["floor (%)"] == "2.0"
    assert rows["—"]["ASR (%)"] == "—"


def test_a_missing_twin_leaves_a_dash_and_a_note(fake):
    run = fake.run("krum", "patch")
    found = table(load(fake.root))
    assert cells(found)["floor (%)"] == "—"
    assert any("no floor for krum / patch" in n and run.name in n for n in found.notes)


def test_leakage_stands_beside_the_best_trivial_guess_by_name(fake):
    fake.run(leakage=12.0)
    row = cells(table(load(fake.root)))
    assert row["PSNR (dB) server operator (best trivial)"] == "12.5\n(9.5 mean colour)"
    assert row["SSIM server operator (best trivial)"] == "0.30\n(0.16 mean colour)"


@pytest.mark.parametrize(("status", "shown"), [("not_applicable", "n/a"), ("failed", "failed"), ("skipped", "skipped")])
def test_leakage_without_a_number_says_so(fake, status, shown):
    fake.run(leakage=status)
    row = cells(table(load(fake.root)))
    assert row["PSNR (dB) server operator (best trivial)"] == shown


def test_signals_show_their_error_beside_that_of_the_mean(fake):
    fake.run("none", leakage=0.5, signals=True)
    fake.run("secure_aggregation", leakage="not_applicable", signals=True)
    found = table(load(fake.root))
    shown = {r[0]: cells(found, i)["MSE server operator (trivial)"] for i, r in enumerate(found.rows)}
    assert shown == {"none": "0.500\n(1.250 mean)", "secure_aggregation": "n/a\n(1.250 mean)"}
    assert not any("PSNR" in h for h in found.headers)
    assert any(n.startswith("MSE: ") for n in found.notes)
    assert any(n == "secure_aggregation, leakage: nothing is seen." for n in found.notes)
    record = next(r for r in found.records if r["defense"] == "none")
    assert (record["mse[server_operator]_mean"], record["mse_baseline[server_operator]_mean"]) == (0.5, 1.25)


def test_the_error_of_images_is_no_measure_of_leakage(fake):
    fake.run("none", leakage=20.0)
    assert not any("MSE" in h for h in table(load(fake.root)).headers)
    fake.run("none", leakage=0.5, signals=True, task="ecg")
    found = table(load(fake.root))
    rows = [cells(found, i) for i in range(2)]
    assert sorted(r["MSE server operator (trivial)"] for r in rows) == ["0.500\n(1.250 mean)", "—"]
    assert sorted(r["PSNR (dB) server operator (best trivial)"] for r in rows) == ["20.5\n(9.5 mean colour)", "—"]


def test_what_is_guaranteed_is_rounded_up(fake):
    said = {"unit": "client", "adversary": "model_recipient", "epsilon": 2.0041, "delta": 1.41e-5, "simulated": False}
    fake.run("dp_central", privacy=[{**said, "adjacency": "add_remove"}])
    found = table(load(fake.root))
    assert cells(found, 0)["privacy"].startswith("ε=2.01, δ=1.5e-05, client")
    assert [at_most(x) for x in (8.0, 7.999, 0.0, 123.4, inf)] == ["8", "8", "0", "124", "∞"]


def test_privacy_names_unit_adversary_and_simulation(fake):
    for defense in ("none", "dp_local", "dp_central"):
        fake.run(defense)
    found = table(load(fake.root))
    privacy = {r[0]: cells(found, i)["privacy"] for i, r in enumerate(found.rows)}
    assert privacy["none"] == "∞"
    assert privacy["dp_local"] == "ε=8, δ=0.001 sim., record: model\nrecipient, server operator"
    assert privacy["dp_central"] == "ε=4, δ=0.01 sim., client: model\nrecipient"
    assert found.records[0].keys() >= {"epsilon[record,server_operator]", "epsilon[client,model_recipient]"}
    assert found.records[0].keys() >= {"adjacency[record,server_operator]", "simulated_population"}
    # With noise from the system, amplification by a seeded sample is simulated too.
    assert any(note.startswith("sim.: noise or sampling came from a seed") for note in found.notes)


def test_a_seed_without_the_guarantee_takes_it_from_the_arm(fake):
    fake.run("dp_local", seed=0)
    fake.run("dp_local", seed=1, privacy=None)
    assert cells(table(load(fake.root)))["privacy"].startswith("ε=∞")


def test_balanced_accuracy_has_a_column_only_where_it_differs(fake):
    path = fake.run()
    assert not any("balanced" in h for h in table(load(fake.root)).headers)
    with open(path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"metric": "balanced_accuracy", "round": 99, "value": 0.5}) + "\n")
    assert cells(table(load(fake.root)))["balanced acc. (%)"] == "50.0"


def test_csv_has_full_precision(fake):
    fake.run("dp_local", accuracy=0.8, rounds=3)
    (row,) = csv.DictReader(io.StringIO(table(load(fake.root)).csv()))
    assert float(row["accuracy_mean"]) == load(fake.root).runs[0].final("accuracy")
    assert row["accuracy_half_width"] == ""
    assert float(row["epsilon[record,server_operator]"]) == 8
    assert float(row["round_seconds_median"]) == pytest.approx(0.52)
    assert float(row["total_seconds"]) == pytest.approx(1.56)


def test_latex_is_escaped(fake):
    fake.run("dp_local", "patch")
    text = table(load(fake.root)).latex()
    assert r"dp\_local & patch" in text
    assert r"$\varepsilon$=8" in text
    assert r"\toprule" in text
    assert escape("50% & #1_{x}") == r"50\% \& \#1\_\{x\}"


def test_labels_are_not_read_as_markup(fake):
    fake.run("[red]")
    assert "[red]" in table(load(fake.root)).text()


@pytest.mark.parametrize("width", [80, 120])
def test_a_narrow_terminal_gets_whole_cells_in_several_blocks(quickstart, width):
    found = table(load(quickstart(2)))
    text = found.text(width)
    assert max(map(len, text.splitlines()[: -len(found.notes)])) <= width
    assert all(line in text for row in found.rows for cell in row for line in cell.splitlines())


def test_a_very_narrow_terminal_folds_and_cuts_nothing(fake):
    fake.run("a_defense_with_a_long_name", "patch")
    assert "…" not in table(load(fake.root)).text(40)


def test_a_table_refuses_what_cannot_be_averaged(fake):
    fake.run(status="failed")
    with pytest.raises(Refused, match="failed"):
        table(load(fake.root))


def test_no_arms_make_an_empty_table(fake):
    found = table(load(fake.root))
    assert (found.rows, found.csv()) == ((), "")
