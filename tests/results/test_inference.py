"""The table and figures of inference, from fake runs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from privbench.benchmarks.results import inference, inference_figures
from privbench.benchmarks.results.load import load
from privbench.benchmarks.results.read import MalformedError
from privbench.benchmarks.results.report import report
from privbench.benchmarks.results.style import save

from .conftest import Fake, line

ARMS = ("none", "dp_local")
PROVEN = {"none": None, "dp_local": 8.0, "dp_central": 8.79}
SLOPE = {"none": 0.2, "dp_local": 0.8, "dp_central": 0.8}


def write(
    fake: Any,
    defense: str,
    seed: int = 0,
    method: str = "canaries",
    epsilon: float = 1.0,
    unit: str = "record",
    task: str = "mnist5k",
) -> Path:
    target = "Audit" if method == "canaries" else "Membership"
    path = fake.run(defense, seed=seed, settings={"inference": {"_target_": f"privbench.{target}"}}, task=task)
    who = {"round": 5, "adversary": "model_recipient", "unit": unit, "method": method}
    row: dict[str, Any] = {**who, "proven": PROVEN[defense], "delta": 1e-3, "adjacency": "replace"}
    if (proven := PROVEN[defense]) is not None and epsilon > proven:
        row |= {"status": "violated", "reason": "more than is claimed"}
    lines = [line("empirical_epsilon", epsilon, **row)]
    if method == "canaries":
        lines.append(line("audit_power", None if PROVEN[defense] is None else 0.93, **who))
    else:
        lines += [line("membership_auc", 0.7 + 0.1 * seed, **who), line(inference.RATE, 0.2, **who)]
        fpr = np.linspace(0, 1, 101)
        tpr = fpr ** SLOPE[defense]
        arrays: dict[str, Any] = {"fpr": fpr, "tpr": tpr, "fpr_loss_threshold": fpr, "tpr_loss_threshold": fpr}
        np.savez(path / "artifacts" / "membership.npz", **arrays)
    with open(path / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(one) + "\n" for one in lines)
    return path


def sweep(fake: Fake, epsilon: float = 1.0) -> Path:
    runs = [write(fake, d, s, m, epsilon) for d in ARMS for s in (0, 1) for m in ("canaries", "lira_online")]
    return fake.sweep(*runs)


def texts(figure: Figure) -> list[str]:
    return [t.get_text() for axes in figure.axes for t in axes.texts]


def points(drawn: Line2D) -> tuple[np.ndarray, np.ndarray]:
    x, y = drawn.get_data()
    return np.asarray(x), np.asarray(y)


def test_a_row_has_the_largest_bound_of_all_seeds(fake):
    runs = [write(fake, "dp_local", seed, epsilon=value) for seed, value in ((0, 1.0), (1, 1.5))]
    table = inference.inference_table(load(fake.sweep(*runs)))
    assert table is not None
    record = table.records[0]
    assert (record["epsilon_proven"], record["epsilon_empirical"], record["violated"]) == (8.0, 1.5, False)
    assert record["power"] == 0.93
    assert (record["unit"], record["adjacency"], record["simulated_population"]) == ("record", "replace", False)


def test_methods_share_a_table_and_a_figure(fake):
    results = load(sweep(fake))
    table = inference.inference_table(results)
    assert table is not None
    assert [r["method"] for r in table.records] == ["canaries", "canaries", "lira_online", "lira_online"]
    assert table.records[2]["membership_auc"] == pytest.approx(0.75)
    ((name, group),) = inference.groups(results)
    assert name == ""
    figure = inference_figures.empirical_epsilon(group)
    assert figure is not None
    assert "power 0.93" in texts(figure)
    assert texts(figure).count("∞") == 2, "no defense proves nothing, by either method"


def test_rows_of_several_tasks_name_theirs(fake):
    for task in ("mnist5k", "other"):
        write(fake, "none", method="loss_threshold", task=task)
    table = inference.inference_table(load(fake.root))
    assert table is not None
    assert [(r["setting"], r["defense"]) for r in table.records] == [("mnist5k", "none"), ("other", "none")]
    assert [row[:2] for row in table.rows] == [("mnist5k", "none"), ("other", "none")]


def test_the_roc_is_drawn_from_ten_false_positives_on(fake):
    path = write(fake, "none", method="loss_threshold")
    for number in (200, 4000, 20_000):
        text = (path / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(one) for one in text]
        rows = [{**r, "non_members": number} if r["metric"] == "membership_auc" else r for r in rows]
        (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        figure = inference_figures.membership_roc(load(fake.root))
        assert figure is not None
        assert figure.axes[0].get_xlim()[0] == pytest.approx(max(10 / number, 1e-3))


def test_a_bug_is_named_in_table_and_figure(fake):
    results = load(sweep(fake, epsilon=9.0))
    table = inference.inference_table(results)
    assert table is not None
    assert "9 BUG" in table.text()
    assert "BUG FOUND in dp_local: more than is claimed" in table.notes
    figure = inference_figures.empirical_epsilon(inference.groups(results)[0][1])
    assert figure is not None
    assert any(t.endswith("BUG") for t in texts(figure))


def test_membership_inference_finds_no_bug(fake):
    runs = [write(fake, "dp_local", method=m, epsilon=9.0) for m in ("canaries", "lira_online")]
    table = inference.inference_table(load(fake.sweep(*runs)))
    assert table is not None
    assert {r["method"]: r["violated"] for r in table.records} == {"canaries": True, "lira_online": False}
    assert table.text().count("9 BUG") == sum("BUG FOUND" in n for n in table.notes) == 1
    assert any("no bound: members were chosen by no coin" in n for n in table.notes)


@pytest.mark.parametrize(("unit", "lines"), [("record", 1), ("client", 0)])
def test_a_clients_epsilon_bounds_no_curve_of_records(fake, unit, lines):
    # dp_central's own statement is epsilon 4 for a client; its row says what is proven of a record.
    path = write(fake, "dp_central", 0, "lira_online", unit=unit)
    results = load(fake.sweep(path))
    figure = inference_figures.membership_roc(results)
    assert figure is not None
    dashed = [x for x in figure.axes[0].lines if x.get_linestyle() == "--" and len(points(x)[0]) > 2]
    assert len(dashed) == lines
    if lines:
        x, y = points(dashed[0])
        np.testing.assert_allclose(y[0], 1 - np.exp(-8.79) * (1 - 1e-3 - x[0]))
        table = inference.inference_table(results)
        assert table is not None
        assert any("another takes its place" in n for n in table.notes)


def test_curves_stand_beside_what_the_guarantee_allows(fake):
    runs = [write(fake, d, s, "lira_online") for d in ARMS for s in (0, 1)]
    figure = inference_figures.membership_roc(load(fake.sweep(*runs)))
    assert figure is not None
    attack, baseline = figure.axes
    lines = {str(found.get_label()): found for found in attack.lines}
    fpr, tpr = points(lines["dp_local"])
    np.testing.assert_allclose(tpr[-1], 1)
    assert (tpr >= fpr - 0.02).all()
    dashed = [found for found in attack.lines if found.get_linestyle() == "--" and len(points(found)[0]) > 2]
    assert len(dashed) == 1, "the arm without a guarantee has no bound"
    x, y = points(dashed[0])
    np.testing.assert_allclose(y[0], 1 - np.exp(-8) * (1 - 1e-3 - x[0]))
    assert baseline.get_title() == "loss threshold"


def test_a_report_has_them_and_forgets_them(fake):
    path = fake.sweep(write(fake, "none", method="lira_online"))
    names = {f.name for f in report(path).files}
    own = {"inference.txt", "inference.csv", "inference.tex", "empirical_epsilon.png", "membership_roc.png"}
    assert own <= names
    for run in fake.root.glob("runs/*"):
        lines = (run / "metrics.jsonl").read_text().splitlines()
        kept = [x for x in lines if "empirical" not in x and "membership" not in x]
        (run / "metrics.jsonl").write_text("\n".join(kept) + "\n")
        (run / "artifacts" / "membership.npz").unlink()
    report(path)
    assert not [f for f in path.rglob("*") if f.name in own]


def test_without_inference_there_is_nothing(quickstart):
    results = load(quickstart())
    assert inference.inference_table(results) is None
    assert inference.groups(results) == []
    assert inference_figures.membership_roc(results) is None


def test_a_torn_artifact_is_named(fake):
    path = write(fake, "none", 0, "lira_online")
    (path / "artifacts" / "membership.npz").write_bytes(b"PK")
    with pytest.raises(MalformedError, match=r"membership\.npz"):
        inference_figures.membership_roc(load(fake.sweep(path)))


def test_equal_results_give_equal_bytes(fake, tmp_path):
    path = sweep(fake)
    for name in ("a", "b"):
        figure = inference_figures.empirical_epsilon(inference.groups(load(path))[0][1])
        assert figure is not None
        save(figure, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
