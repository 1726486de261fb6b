"""The figure of attested clients and the column of refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privbench.benchmarks.results.attested import attested_clients
from privbench.benchmarks.results.load import load
from privbench.benchmarks.results.refusals import refusals, refused
from privbench.benchmarks.results.table import table

CHANNEL = "defense.channel"
ATTESTED = {"_target_": "privbench.fake.Attested", "attest_clients": True}


@pytest.fixture
def run(fake: Any) -> Callable[..., Path]:
    def make(defense: str, poisoning: str, name: str | None = None, rounds: int = 5, **more: Any) -> Path:
        """``name`` of a refusal in the first ``rounds`` rounds; an attested channel says how many it refused."""
        attested = {CHANNEL: ATTESTED} if defense == "tee_clients" else {}
        path = fake.run(defense, poisoning, settings=attested, **more)
        if attested:
            lines = [("refused", r, float(name is not None and r <= rounds)) for r in range(1, 6)]
            lines += [(f"refused_{name}", r, 1.0) for r in range(1, rounds + 1)] if name else []
            rest = {"client": None, "adversary": None}
            with open(path / "metrics.jsonl", "a") as file:
                file.writelines(json.dumps({"metric": m, "round": r, "value": v, **rest}) + "\n" for m, r, v in lines)
        return path

    return make


@pytest.fixture
def every(run: Callable[..., Path], fake: Any) -> Path:
    for defense in ("none", "median", "tee_clients"):
        run(defense, "none")
        run(defense, "backdoor", asr=0.3)
        run(defense, "model_replacement", "wrong_training_code", asr=0.05 if defense == "tee_clients" else 0.9)
        run(defense, "relayed_evidence", "relayed_evidence", rounds=2)
    return fake.root


def test_refusals_are_counted_by_round_and_name(every: Path):
    arms = {(a.defense, a.poisoning): a for a in load(every).arms()}
    assert refusals(arms["tee_clients", "model_replacement"]) == {"wrong_training_code": 5}
    assert refusals(arms["tee_clients", "relayed_evidence"]) == {"relayed_evidence": 2}
    assert refused(arms["tee_clients", "relayed_evidence"]) == "relayed_evidence 2/5"
    assert refused(arms["tee_clients", "backdoor"]) == "none"
    assert refused(arms["none", "backdoor"]) == "—"


def test_the_table_says_what_was_refused(every: Path):
    made = table(load(every))
    column = made.headers.index("refused\n(rounds)")
    assert {row[column] for row in made.rows} == {"—", "none", "wrong_training_code 5/5", "relayed_evidence 2/5"}
    assert made.records[0]["refused"] == "—"


def test_bars_stand_by_poisoner_and_refused_ones_are_hatched(every: Path):
    figure = attested_clients(load(every))
    assert figure is not None
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["backdoor", "model replacement", "relayed evidence"]
    bars = [p for p in axes.patches if p.get_width() > 0]  # pyright: ignore[reportAttributeAccessIssue]
    assert len(bars) == 9
    hatched = [p for p in bars if p.get_hatch()]
    assert len(hatched) == 1, "an arm that is refused in 2 of 5 rounds still has its say"
    assert hatched[0].get_width() == pytest.approx(100 * 0.05 * (1 - 2**-5))  # pyright: ignore[reportAttributeAccessIssue]
    said = [t.get_text() for t in axes.texts if "refused" in t.get_text()]
    assert said == ["refused: wrong_training_code, 5 of 5 rounds", "87; refused: relayed_evidence, 2 of 5 rounds"]
    assert len(axes.texts) == len(bars)
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert {"none", "median", "tee_clients", "refused", "floor (no poisoner)"} <= set(labels)
    assert "assumed by the ideal-TEE model" in figure.get_supxlabel()
    assert "not that data are good" in figure.get_supxlabel()


def test_nothing_is_drawn_without_attested_clients_or_with_one_poisoner(run: Callable[..., Path], fake: Any):
    assert attested_clients(load(fake.root)) is None
    run("none", "backdoor")
    run("none", "model_replacement")
    assert attested_clients(load(fake.root)) is None
    run("tee_clients", "backdoor")
    assert attested_clients(load(fake.root)) is not None


def test_arms_of_one_name_are_not_drawn_on_top_of_each_other(run: Callable[..., Path], every: Path, fake: Any):
    fake.run("median", "backdoor", settings={"federation.rounds": 7})
    assert all(attested_clients(own) is not None or len(own.runs) == 1 for _, own in load(every).setups())
    assert attested_clients(load(every)) is None
