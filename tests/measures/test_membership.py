"""Membership inference in real runs, and what its shadow federations are trained on."""

from math import inf
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.federation import Federation
from privbench.benchmarks.measures import membership
from privbench.benchmarks.measures.inference import Claim, claim, of_record
from privbench.benchmarks.measures.membership import (
    ADVERSARY,
    Membership,
    Shadow,
    pooled,
    shadow_federation,
    train_shadow,
)
from privbench.benchmarks.sweep import compose
from privbench.defenses.accounting.accountant import Terms
from privbench.defenses.accounting.plan import ClientLevel, Facts
from privbench.defenses.channel import Plaintext

PLAIN = ["task=digits", "task.records=200", "model=mlp", "federation.clients=4", "federation.rounds=2"]
PLAIN += ["federation.workers=1"]

BY_HEART = [*PLAIN, "federation.clients=1", "federation.local.batch_size=null", "federation.local.learning_rate=1"]
BY_HEART += ["federation.local.steps=150"]


def named(rows, metric):
    return [row for row in rows if row["metric"] == metric]


def test_lira_finds_records_that_were_learnt_by_heart(tmp_path, do):
    _, rows, path = do(tmp_path, *BY_HEART, "inference=lira", "inference.shadows=4", "inference.candidates=100")
    found = {row["metric"]: row for row in rows}
    auc, baseline = found["membership_auc"], found["membership_auc_loss_threshold"]
    assert auc["value"] > 0.6
    assert (auc["members"], auc["non_members"], auc["method"]) == (100, 100, "lira_online")
    assert baseline["method"] == "loss_threshold"
    assert found["membership_balanced_accuracy"]["value"] == (1 + found["membership_advantage"]["value"]) / 2
    few = found["membership_tpr_at_0.1_percent_fpr"]
    assert (few["value"], few["status"]) == (None, "not_applicable")
    assert "100 non-members: a false positive rate of 0.1% needs 10000" in few["reason"]
    with np.load(path / "artifacts" / "membership.npz") as file:
        assert file["shadows"].shape == file["inside"].shape == (4, 200)
        # In training a record is fitted better than out of it, in every second model.
        inside = file["inside"]
        assert file["shadows"][inside].mean() > file["shadows"][~inside].mean() + 0.5
        assert file["fpr"][0] == 0 and file["tpr"][-1] == 1  # noqa: PT018


def test_the_loss_alone_needs_no_shadow_models(tmp_path, do):
    _, rows, _ = do(tmp_path, *PLAIN, "inference=loss_threshold", "inference.candidates=50")
    assert len(named(rows, "membership_auc")) == 1
    assert not named(rows, "membership_auc_loss_threshold")
    assert {row["method"] for row in rows if "method" in row} == {"loss_threshold"}


def test_a_shadow_is_trained_on_its_half_of_the_candidates_and_on_all_others(tmp_path, monkeypatch):
    prepared = compose([*PLAIN, "federation.rounds=1", "inference=lira", f"results_dir={tmp_path}"])
    data, made = prepared.federation.task.data, []

    class Spy(Federation):
        def __post_init__(self):
            super().__post_init__()
            made.append(self)

    monkeypatch.setattr(membership, "Federation", Spy)
    pool, members = pooled(data, 30, 0)
    inside = np.arange(60) % 2 == 0
    side = prepared.federation.client_side()
    made_of = (train_shadow(side, Shadow(prepared.experiment, pool, inside, n)) for n in (0, 1, 0))
    found = [np.array([]) if f is None else f for f in made_of]
    assert all(len(f) == 60 for f in found)
    assert np.array_equal(found[0], found[2]), "a shadow's streams have names"
    assert not np.array_equal(found[0], found[1])
    trained = {tuple(x.flatten().tolist()) for x in made[0].task.data.train.x}
    there = torch.tensor([tuple(x.flatten().tolist()) in trained for x in pool.records.x])
    assert torch.equal(there, torch.from_numpy(inside))
    assert len(made[0].task.data.train) == len(data.train)
    assert {tuple(x.flatten().tolist()) for x in data.train.x[pool.rest]} <= trained
    assert made[0].settings == prepared.federation.settings
    assert made[0].seed not in (made[1].seed, prepared.federation.seed)
    assert members.sum() == 30
    assert torch.equal(pool.records.x[:30], data.train.x[pool.members])


def test_the_number_of_workers_changes_nothing(tmp_path, do):
    options = [*PLAIN, "inference=lira", "inference.shadows=4", "inference.candidates=20"]
    one = do(tmp_path / "a", *options)[1]
    two = do(tmp_path / "b", *options, "federation.workers=2")[1]
    metrics = [[r for r in rows if r["metric"].startswith(("membership", "empirical"))] for rows in (one, two)]
    assert metrics[0] == metrics[1]
    assert metrics[0]


PRESENT = ["+defense.privacy.present=0.8", "defense.privacy.delta=1e-3"]


@pytest.mark.parametrize(
    "defense",
    [
        ["secagg_dp_distributed"],
        ["secagg_dp_distributed", "defense.privacy.present=0.5", "defense.channel.late_dropout=0.1"],
        ["tee_dp_distributed", *PRESENT, "federation.dropout=0.1"],
        ["tee_dp"],
    ],
)
def test_shadows_have_the_noise_of_the_runs_channel(tmp_path, defense):
    name, *more = defense
    defended = [*PLAIN, "federation.rounds=1", f"defense={name}", *more]
    prepared = compose([*defended, "inference=lira", f"results_dir={tmp_path}"])
    pool, members = pooled(prepared.federation.task.data, 10, 0)
    job = Shadow(prepared.experiment, pool, members, 0)
    made = shadow_federation(job, prepared.federation.device)
    assert made.plan == prepared.federation.plan
    assert type(made.session(made.start())).__name__ == "Plaintext"
    found = train_shadow(prepared.federation.client_side(Plaintext()), job)
    assert found is not None
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("option", "change", "field", "hint"),
    [
        ("lira", "shadows=5", "inference.shadows", "even"),
        ("lira", "shadows=0", "inference.shadows", "lira_online needs them"),
        ("loss_threshold", "shadows=4", "inference.shadows", "needs none"),
        ("lira", "candidates=3", "inference.candidates", "at least 10"),
        ("lira", "confidence=0", "inference.confidence", r"\(0, 1\)"),
        ("lira", "confidence=0.9 poisoning=label_flip", "inference.attack", "trained without the poisoner"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, option, change, field, hint):
    with pytest.raises(ConfigError, match=hint) as caught:
        compose([*PLAIN, f"inference={option}", *f"inference.{change}".split(), f"results_dir={tmp_path}"])
    assert caught.value.field == field


def test_the_default_is_lira():
    assert Membership().attack.name == "lira_online"


FACTS = {"clients": 4, "rounds": 5, "records": (9,) * 4, "batch": (3,) * 4, "steps": (1,) * 4}


def claimed(participation: float = 1.0, sampling: Any = "poisson", **more: Any) -> tuple[Any, Claim]:
    facts = Facts(**FACTS, participation=participation, sampling=sampling)
    plan = ClientLevel(delta=1e-3, clip=1.0, noise_multiplier=2.0, **more).bind(facts)
    federation: Any = SimpleNamespace(plan=plan)
    return federation, claim(federation, [plan.charge(n, range(4)) for n in range(1, 6)], ADVERSARY)


@pytest.mark.parametrize("noise", ["central", "distributed"])
def test_a_record_has_the_epsilon_of_replacing_a_clients_update(noise):
    federation, client = claimed(noise=noise)
    assert client.epsilon == pytest.approx(3.61, abs=0.01)
    record = of_record(federation, client)
    assert (record.unit, record.adjacency, record.delta) == ("record", "replace", 1e-3)
    assert record.epsilon == pytest.approx(Terms("pld", "replace").epsilon([((1.0, 2.0), 5)], 1e-3), abs=1e-4)
    assert record.epsilon == pytest.approx(8.79, abs=0.01)
    assert record.stated == {"proven": record.epsilon, "adjacency": "replace", "simulated_population": False}


def test_a_claim_by_replacement_is_one_for_each_record():
    federation, client = claimed(adjacency="replace")
    assert of_record(federation, client).epsilon == client.epsilon


def test_where_replacement_has_no_proof_a_record_has_none():
    federation, client = claimed(participation=0.5, accountant="rdp")
    assert client.epsilon < inf
    record = of_record(federation, client)
    assert (record.epsilon, record.unit) == (inf, "record")


def test_a_claim_for_records_stays_as_it_is():
    own = Claim("record", 2.0, 1e-5, [(1.0, 1.0, 1)], "add_remove")
    nothing: Any = SimpleNamespace(plan=None)
    assert of_record(nothing, own) is own


@pytest.mark.parametrize("private", [True, False])
def test_membership_stands_beside_what_is_proven_without_a_verdict(monkeypatch, private):
    federation, client = claimed()
    monkeypatch.setattr(membership, "claim", lambda *_: client if private else Claim(None, inf, None))
    state = SimpleNamespace(ledger=[])
    scene: Any = SimpleNamespace(federation=federation, finished=SimpleNamespace(round=5, state=state))
    members = np.arange(200_000) % 2 == 0
    # A shift between training and test data that nobody had to leak.
    row = Membership()._epsilon(scene, np.where(members, 1.0, 0.0), members)
    assert (row["unit"], row["simulated_population"]) == ("record", False)
    assert row["proven"] == (pytest.approx(8.79, abs=0.01) if private else None)
    assert row["value"] > 8.8
    assert "status" not in row
