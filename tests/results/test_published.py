"""Published figures beside measured ones."""

from pathlib import Path

import pytest
import yaml

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.results.load import load
from privbench.benchmarks.results.published import Published, published
from privbench.benchmarks.results.report import report
from privbench.benchmarks.sweep import compose

CONF = Path(__file__).parents[2] / "conf"
PAPERS = [p for p in sorted((CONF / "experiment/paper").glob("*.yaml")) if "published:\n" in p.read_text()]
ARMS = [p for p in sorted((CONF / "arm").glob("*/*.yaml")) if "published:\n" in p.read_text()]
FIGURE = {"metric": "psnr_db", "value": 18.0, "spread": 3.33, "of": "100 images", "source": "a paper, Table 1"}


def test_measured_stands_beside_reported(fake):
    fake.run(leakage=15.0, config={"published": [{"_target_": "x.Published", **FIGURE}]})
    table = published(load(fake.root))
    assert table is not None
    (row,) = table.records
    assert (row["measured"], row["reported"], row["attacks_done"]) == (pytest.approx(15.5), 18.0, row["attacks"])
    assert "18.00 ± 3.33" in table.text()
    assert "100 images (a paper, Table 1)" in table.text()
    assert report(fake.root).published is not None
    assert (fake.root / "report" / "published.csv").exists()


def test_poisoners_are_told_apart_and_a_source_is_named_once(fake):
    others = {**FIGURE, "metric": "accuracy", "spread": None}
    fake.run(config={"published": [{**others, "value": 0.9}]})
    fake.run(poisoning="backdoor", config={"published": [{**others, "value": 0.8}]})
    table = published(load(fake.root))
    assert table is not None
    assert table.headers[:2] == ("defense", "poisoning")
    assert [row[1] for row in table.rows] == ["—", "backdoor"]
    assert table.notes[:-1] == ("accuracy 0.9000, 0.8000: 100 images (a paper, Table 1).",)


def test_one_failed_attack_leaves_no_measured_number(fake):
    fake.run(leakage="failed", config={"published": [FIGURE]})
    table = published(load(fake.root))
    assert table is not None
    assert table.records[0]["measured"] is None
    assert "—" in table.text()


def test_a_figure_of_another_defense_is_left_out(fake):
    fake.run(config={"published": [{**FIGURE, "defense": "dp_local"}]})
    assert published(load(fake.root)) is None


def test_utility_stands_beside_what_was_reported(fake):
    figure = {**FIGURE, "metric": "accuracy", "value": 0.981, "spread": None}
    fake.run(config={"published": [figure]})
    table = published(load(fake.root))
    assert table is not None
    (row,) = table.records
    assert row["adversary"] is None
    assert row["measured"] == pytest.approx(load(fake.root).arms()[0].final("accuracy").mean)
    assert "0.9810" in table.text()


def test_without_published_figures_there_is_no_table(fake):
    fake.run()
    assert published(load(fake.root)) is None


@pytest.mark.parametrize("path", PAPERS, ids=lambda p: p.stem)
def test_a_papers_experiment_says_what_was_published(path: Path):
    """Names follow the file, every figure has a source, and the settings are those of a run that can be built."""
    stated = yaml.safe_load(path.read_text())
    assert stated["name"] == path.stem
    assert all(Published(**{k: v for k, v in f.items() if k != "_target_"}).source for f in stated["published"])
    overrides = [f"experiment=paper/{path.stem}", "task=digits", "task/partition=iid"]
    if any(d.get("override /model") == "tanh_cnn" for d in stated["defaults"] if isinstance(d, dict)):
        overrides[1] = "task=mnist5k"  # digits are too small for it
    if "partition" in stated.get("task", {}):
        # What it says of its data is made for the paper's.
        overrides += [f"~task.partition.{field}" for field in stated["task"]["partition"]] + ["task.records=null"]
    prepared = compose(overrides)
    assert prepared.experiment.published
    assert "published" not in prepared.settings


@pytest.mark.parametrize("path", ARMS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_an_arm_of_a_papers_experiment_has_a_figure_of_its_own(path: Path):
    prepared = compose([f"+arm/{path.parent.name}={path.stem}", "task=digits", "model=mlp"])
    figures = prepared.experiment.published
    assert {(f.metric, f.defense) for f in figures}, "at least one"
    assert len({(f.metric, f.defense) for f in figures}) == len(figures), "one figure a metric and defense"
    assert all(f.metric in ("psnr_db", "asr") and f.source for f in figures)


def test_a_figure_without_a_name_is_refused():
    with pytest.raises(ConfigError, match="metric"):
        Published(**{**FIGURE, "metric": ""})
