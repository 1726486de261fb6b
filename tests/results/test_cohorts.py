"""The figure of leakage against clients a round."""

import json
from typing import Any

import pytest

from privbench.benchmarks.results import cohorts
from privbench.benchmarks.results.load import Refused, load
from privbench.benchmarks.results.report import report


def cohort(fake, clients: float, psnr: float, defense: str = "none", seed: int = 0, **options):
    """A run of ``clients`` a round; a model recipient finds half as much."""
    path = fake.run(defense, seed=seed, settings={"federation.participation": clients / 20}, leakage=psnr, **options)
    with (path / "metrics.jsonl").open("a") as file:
        for number in (1, 2):
            file.write(json.dumps({"metric": "participants", "round": number, "value": clients}) + "\n")
        for name, value in (("psnr_db", psnr / 2), ("psnr_db_grey", 3.0)):
            row = {"metric": name, "round": 1, "client": 0, "adversary": "model_recipient", "value": value}
            file.write(json.dumps(row) + "\n")
    return path


def test_lines_by_adversary_and_panels_by_defense(fake):
    for clients in (5, 1, 20):
        cohort(fake, clients, 30 - clients)
        cohort(fake, clients, 20 - clients / 2, "krum")
    (group,) = cohorts.groups(load(fake.root))
    figure: Any = cohorts.leakage_by_clients(group)
    assert figure is not None
    assert [a.get_title() for a in figure.axes] == ["none", "krum"]
    lines = {c.get_label(): c.lines[0] for c in figure.axes[0].containers}
    assert list(lines) == ["server operator", "model recipient"]
    assert list(lines["server operator"].get_xdata()) == [1, 5, 20]
    assert list(lines["server operator"].get_ydata()) == [29.5, 25.5, 10.5]  # the second victim is 1 dB better
    assert list(lines["model recipient"].get_ydata()) == [14.5, 12.5, 5]
    guess = next(x for x in figure.axes[0].lines if x.get_label() == "best trivial guess")
    assert list(guess.get_ydata()) == [9.5, 9.5, 9.5], "the best over adversaries and guesses"
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["1", "5", "20"]


def test_several_seeds_have_an_interval(fake):
    for clients in (1, 5):
        for seed in (0, 1):
            cohort(fake, clients, 20.0 + seed, seed=seed)
    (group,) = cohorts.groups(load(fake.root))
    figure: Any = cohorts.leakage_by_clients(group)
    assert figure is not None
    assert "2 seeds" in figure.get_suptitle()
    assert all(c.has_yerr for c in figure.axes[0].containers)


def test_colluders_stand_after_the_operator_in_order():
    names = ["model_recipient", "server_operator + 19 clients", "server_operator + 2 clients", "server_operator"]
    assert sorted(names, key=cohorts._order) == [names[3], names[2], names[1], names[0]]


def test_one_number_of_clients_or_other_differences_are_no_group(fake):
    cohort(fake, 1, 20.0)
    fake.run(leakage=25.0, settings={"federation.participation": 0.25, "federation.rounds": 7})
    assert cohorts.groups(load(fake.root)) == []
    cohort(fake, 5, 10.0, status="failed")
    with pytest.raises(Refused):
        cohorts.groups(load(fake.root))


def test_a_report_has_it_and_removes_a_stale_one(fake):
    cohort(fake, 1, 20.0)
    made = report(fake.root)
    figures = made.folder / "figures"
    (figures / "leakage_by_clients.png").write_bytes(b"stale")
    assert report(fake.root).status == 0
    assert not (figures / "leakage_by_clients.png").exists()
    cohort(fake, 5, 10.0)
    assert {"leakage_by_clients.png", "leakage_by_clients.pdf"} <= {f.name for f in report(fake.root).files}
