"""Robust rules in whole runs: what is refused before training, who is screened, and the attested aggregator."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from privbench.attacks.poisoning import Poisoner
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.progress import Progress
from privbench.benchmarks.run import Outcome, run
from privbench.benchmarks.sweep import compose

SMALL = ["task=digits", "task.records=200", "model=mlp", "federation.clients=6", "federation.workers=1"]
KRUM = "privbench.defenses.aggregation.MultiKrum"


@dataclass(frozen=True)
class Sends(Poisoner):
    """Sends the same number in every coordinate.

    Args:
        value: the number.
    """

    value: float = float("nan")

    def craft(self, update, seen, generator):
        return replace(update, vector=torch.full_like(update.vector, self.value))


def do(folder: Path, *overrides: str, poisoner: Poisoner | None = None) -> tuple[Outcome, Path]:
    prepared = compose([*SMALL, "federation.rounds=2", *overrides, f"results_dir={folder}"])
    if poisoner:
        attackers = frozenset(range(6 - poisoner.clients, 6))
        prepared.federation.poisoner, prepared.federation.attackers = poisoner, attackers
    return run(prepared, {}, Progress("test")), prepared.path


def rows(path: Path, *metrics: str) -> list[tuple[Any, ...]]:
    """``(metric, round, client, value)`` of the lines of these metrics."""
    found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [(r["metric"], r["round"], r["client"], r["value"]) for r in found if r["metric"] in metrics]


def model(path: Path) -> torch.Tensor:
    return torch.load(path / "checkpoint.pt", weights_only=False)["state"].model


@pytest.mark.parametrize("value", [-1, -100])
def test_a_negative_number_of_attackers_is_refused(value: int):
    with pytest.raises(ConfigError, match=rf"^f={value}: a whole number from 0"):
        compose([*SMALL, f"f={value}"])
    with pytest.raises(ConfigError, match=rf"^defense.aggregation.f={value}: at least 0"):
        compose([*SMALL, "defense=multi_krum", f"f={value}"])


@pytest.mark.parametrize(
    ("overrides", "least"),
    [
        (["defense=multi_krum", "f=2"], 7),
        (["defense=krum", "f=2"], 7),
        (["defense=bulyan"], 7),
        (["defense=trimmed_mean", "f=3"], 7),
        (["defense=dnc", "f=3"], 7),
        (["defense=multi_krum", "federation.participation=0.5"], 5),
        (["defense=multi_krum", "federation.dropout=0.4"], 5),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else str(v),
)
def test_too_small_a_cohort_is_refused_before_training(overrides: list[str], least: int):
    with pytest.raises(ConfigError, match=rf"^defense.aggregation.f=\d: for \w+ with at least {least}: \d of 6"):
        compose([*SMALL, *overrides])


@pytest.mark.parametrize("more", [["poisoning.clients=1"], ["poisoning.share=1"]], ids=["one", "all"])
def test_a_poisoner_may_not_own_the_data_that_a_rule_takes_for_clean(more: list[str]):
    root = 5 if more == ["poisoning.clients=1"] else 0
    asked = ["defense=fltrust", "poisoning=backdoor", f"defense.aggregation.root={root}", *more]
    with pytest.raises(ConfigError, match=rf"^defense.aggregation.root={root}: a client that the poisoner doesn't own"):
        compose([*SMALL, *asked])


@pytest.mark.parametrize("defense", ["none", "multi_krum", "norm_clipping"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_client_that_sends_no_numbers_is_screened(defense: str, value: float, tmp_path: Path):
    outcome, path = do(tmp_path, f"defense={defense}", poisoner=Sends(value=value))
    assert (outcome.status, outcome.note) == ("complete", None)
    assert rows(path, "screened") == [("screened", number, 5, 1) for number in (1, 2)]
    assert bool(model(path).isfinite().all())
    rates = rows(path, "kept", "filter_true_positive_rate", "filter_false_positive_rate")
    kept = [("kept", 5), ("filter_true_positive_rate", 1.0), ("filter_false_positive_rate", 0.0)]
    # Who was screened is the one that Multi-Krum was told of, so it drops nobody else.
    expected = [(name, number, None, share) for number in (1, 2) for name, share in kept]
    assert rates == (expected if defense == "multi_krum" else [])


def test_all_clients_without_numbers_stop_the_run(tmp_path: Path):
    outcome, _ = do(tmp_path, poisoner=Sends(clients=6))
    assert outcome.status == "diverged"
    assert "no client's update is finite in round 1" in (outcome.note or "")


def test_an_attested_aggregator_runs_the_rule_of_a_plain_server(tmp_path: Path):
    plain, one = do(tmp_path / "plain", "defense=multi_krum")
    swapped = ["defense=tee_robust", f"defense.aggregation._target_={KRUM}", "+defense.aggregation.f=${f}"]
    sealed, other = do(tmp_path / "tee", *swapped)
    assert (plain.status, sealed.status) == ("complete", "complete"), sealed.note
    assert torch.equal(model(one), model(other))
    names = ("kept", "filter_false_positive_rate", "accuracy", "loss")
    assert rows(one, *names) == rows(other, *names)
    assert [value for *_, value in rows(other, "kept")] == [5, 5]
    mean, third = do(tmp_path / "mean")
    assert mean.status == "complete"
    assert not torch.equal(model(third), model(one))
