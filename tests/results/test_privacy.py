"""The table and the figure of client-level mechanisms, on made-up numbers."""

import json
import math
from typing import Any

import pytest

from privbench.benchmarks.results import figures
from privbench.benchmarks.results.load import Refused, load
from privbench.benchmarks.results.privacy import privacy
from privbench.benchmarks.results.report import report

PLAN = {"epsilon": 8.0, "delta": 1e-3, "clip": 0.3}


def statements(operator: float | None, recipient: float | None) -> list[dict[str, Any]]:
    fields = {"unit": "client", "delta": 1e-3, "simulated": True}
    return [
        {**fields, "adversary": "server_operator", "epsilon": operator, "adjacency": "zero_out"},
        {**fields, "adversary": "model_recipient", "epsilon": recipient, "adjacency": "add_remove"},
    ]


@pytest.fixture
def mechanism(fake):
    """One arm of a mechanism: what it adds on the mean, theory and 1% more."""

    def write(defense, noise, std, said, seed=0, cohort=20.0, amplified=False, plan=PLAN, **more):
        settings = {f"defense.privacy.{k}": v for k, v in plan.items()}
        path = fake.run(defense, seed=seed, settings=settings, privacy=statements(*said), **more)
        of = {"round": 5, "client": None, "adversary": None, "noise": noise, "cohort": cohort, "amplified": amplified}
        lines = [
            {"metric": "noise_std", **of, "value": std},
            {"metric": "noise_std_measured", **of, "value": 1.01 * std, "low": std, "high": 1.02 * std},
        ]
        with (path / "metrics.jsonl").open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        return path

    return write


@pytest.fixture
def concert(fake, mechanism):
    def write(seeds=1):
        for seed in range(seeds):
            fake.run("none", seed=seed, accuracy=0.95)
            mechanism("clip_only", "central", 0.0, (None, None), seed, plan={**PLAN, "epsilon": None})
            mechanism("by_clients", "local", 0.02 * math.sqrt(20), (8.0, 1.24), seed, accuracy=0.1)
            mechanism("once", "central", 0.02, (8.0, 8.0), seed, accuracy=0.7)
            mechanism("shares", "distributed", 0.02, (8.0, 8.0), seed, accuracy=0.7)
        return fake.root

    return write


def test_the_table_has_epsilon_by_adversary_and_the_factor_beside_its_root(concert):
    found = privacy(load(concert()))
    assert found is not None
    rows = {r["defense"]: r for r in found.records}
    assert list(rows) == ["none", "by_clients", "clip_only", "once", "shares"]
    assert {k: (r["epsilon[server_operator]"], r["epsilon[model_recipient]"]) for k, r in rows.items()} == {
        "none": (math.inf, math.inf),
        "clip_only": (math.inf, math.inf),
        "by_clients": (8.0, 1.24),
        "once": (8.0, 8.0),
        "shares": (8.0, 8.0),
    }
    assert rows["by_clients"]["times_central"] == pytest.approx(math.sqrt(20))
    assert rows["by_clients"]["sqrt_cohort"] == pytest.approx(math.sqrt(20))
    assert rows["shares"]["times_central"] == pytest.approx(1)
    assert rows["clip_only"]["noise_std"] is rows["none"]["times_central"] is None
    cells = {r[0]: r[1:] for r in found.rows}
    assert cells["by_clients"] == ("each client", "n=1", "8", "1.24", "0.08944", "0.09034", "4.47", "4.47")
    assert cells["none"] == ("nobody", "n=1", "∞", "∞", "—", "—", "—", "—")


def test_one_mechanism_has_nothing_to_be_compared_with(mechanism):
    path = mechanism("once", "central", 0.02, (8.0, 8.0))
    results = load(path.parents[1])
    assert privacy(results) is None
    assert figures.noise_mechanisms(results) is None


def test_mechanisms_for_other_targets_are_not_set_against_each_other(mechanism):
    mechanism("once", "central", 0.02, (2.0, 2.0), plan={**PLAN, "epsilon": 2.0})
    path = mechanism("by_clients", "local", 0.02, (8.0, 1.24))
    found = privacy(load(path.parents[1]))
    assert found is not None
    assert [r["times_central"] for r in found.records] == [None, 1.0]  # central noise against itself


@pytest.mark.parametrize("other", [{"adjacency": "replace"}, {"accountant": "rdp"}])
def test_noise_by_another_adjacency_or_accountant_is_no_reference(mechanism, other):
    mechanism("once", "central", 0.04, (8.0, 8.0), plan={**PLAN, **other})
    path = mechanism("by_clients", "local", 0.02 * math.sqrt(20), (8.0, 1.24))
    found = privacy(load(path.parents[1]))
    assert found is not None
    assert {r["defense"]: r["times_central"] for r in found.records} == {"once": 1.0, "by_clients": None}
    assert any("adjacency, accountant" in n for n in found.notes)


def test_each_row_says_unit_adjacency_and_population(concert):
    found = privacy(load(concert()))
    assert found is not None
    assert all((r["unit"], r["simulated_population"]) == ("client", False) for r in found.records)
    rows = {r["defense"]: (r["adjacency[server_operator]"], r["adjacency[model_recipient]"]) for r in found.records}
    assert rows["once"] == ("zero_out", "add_remove")
    assert rows["none"] == (None, None)


def test_central_noise_that_sampling_amplifies_is_said_to_mix_adversaries(mechanism):
    mechanism("once", "central", 0.01, (None, 8.0), amplified=True)
    path = mechanism("by_clients", "local", 0.1, (8.0, 8.0))
    found = privacy(load(path.parents[1]))
    assert found is not None
    assert any("MIXES ADVERSARIES" in n for n in found.notes)
    figure = figures.noise_mechanisms(load(path.parents[1]))
    assert figure is not None
    assert any("mixes adversaries" in t.get_text() for t in figure.axes[1].texts)


def test_the_figure_shows_measured_noise_on_theory(concert):
    figure: Any = figures.noise_mechanisms(load(concert(seeds=3)))
    left, right = figure.axes
    assert right.get_xscale() == "log"
    drawn = [line for line in right.lines if line.get_marker() == "|" and line.get_markersize() == 13]
    assert [line.get_xdata()[0] for line in drawn] == pytest.approx([0.02 * math.sqrt(20), 0.02, 0.02])
    measured = [c.lines[0].get_xdata()[0] for c in right.containers]
    assert measured == pytest.approx([1.01 * 0.02 * math.sqrt(20), 0.0202, 0.0202])
    written = [t.get_text() for t in right.texts]
    assert "\u00d7 4.47  (√20 = 4.47)" in written
    assert written.count("no noise") == 2
    names = [t.get_text() for t in left.get_yticklabels()]
    assert names[1] == "by_clients\nε: 8 operator, 1.24 recipient"
    assert [round(c.lines[0].get_xdata()[0]) for c in left.containers][1] == 10
    assert "n = 3 seeds" in figure.get_suptitle()


def test_a_report_writes_the_table_and_removes_it_when_it_no_longer_applies(concert):
    root = concert()
    made = report(root)
    assert made.privacy is not None
    folder = root / "report"
    text = (folder / "privacy.txt").read_text()
    assert "each client" in text
    assert "√K" in text
    assert (folder / "figures" / "noise_mechanisms.png").exists()
    for path in (root / "runs").iterdir():
        lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
        (path / "metrics.jsonl").write_text("".join(x for x in lines if "noise_std" not in x))
    assert report(root).privacy is None
    assert not list(folder.glob("privacy.*"))
    assert not (folder / "figures" / "noise_mechanisms.png").exists()


def test_software_tees_stay_labelled(mechanism, monkeypatch):
    monkeypatch.setattr("privbench.benchmarks.results.read._shown", lambda path, manifest: manifest["assurance"])
    mechanism("once", "central", 0.02, (8.0, 8.0), assurance="software")
    path = mechanism("by_clients", "local", 0.1, (8.0, 1.24))
    found = privacy(load(path.parents[1]))
    assert found is not None
    assert any("software TEE: the attestation is emulated" in n for n in found.notes)
    figure = figures.noise_mechanisms(load(path.parents[1]))
    assert figure is not None
    assert any("software TEE" in t.get_text() for t in figure.axes[0].get_yticklabels())


def test_what_cannot_be_averaged_is_refused(concert, fake):
    root = concert()
    fake.run("broken", status="failed")
    with pytest.raises(Refused):
        privacy(load(root))
