"""Clients who collude with the operator: who they are, what they hand over, and what it exposes of the others."""

import json
from dataclasses import replace

import pytest
import torch

from privbench.attacks.leakage.dlg import DLG
from privbench.attacks.leakage.observe import observe
from privbench.attacks.poisoning import Backdoor
from privbench.benchmarks import attacking
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.federation import Federation
from privbench.benchmarks.federation.server import ServerSGD
from privbench.benchmarks.federation.view import Mixture, RoundView, View, collude, parted, told
from privbench.benchmarks.measures.leakage import Leakage
from privbench.benchmarks.progress import Progress
from privbench.benchmarks.run import run
from privbench.benchmarks.sweep import compose
from privbench.defenses import Defense
from privbench.defenses.accounting import ClientLevel, RecordLevel
from privbench.defenses.aggregation import ClippedMean, CoordinateMedian, FixedDenominatorMean
from privbench.defenses.local import DPSGD, ClientNoise
from privbench.defenses.release import CentralGaussian

EVERYBODY = frozenset(range(6))
ONE_STEP = {"batch_size": None, "learning_rate": 0.1}


def released_alone(view: View, federation: Federation) -> View:
    """What a channel that hides updates would have shown of the same round."""
    hidden = tuple(replace(r, updates={}, aggregate=None) for r in view.rounds)
    return replace(view, rounds=hidden)


def target(done, victim: int, number: int, round: int = 1) -> attacking.Target:
    view = released_alone(done.rounds[round - 1].views["server_operator"], done.federation)
    joining = attacking.colluders(number, victim, done.federation.clients)
    nothing = torch.zeros(0)
    measure = Leakage(DLG(), over_rounds=round > 1)
    return attacking.Target(measure, view, "", joining, round, victim, None, nothing, torch.Generator())  # pyright: ignore[reportArgumentType]


DEFENSES = {
    "none": Defense(),
    "norm_clipping": Defense(aggregation=ClippedMean(0.05)),
    "dp_local": Defense(local=DPSGD(), privacy=RecordLevel(delta=1e-4, clip=1.0, noise_multiplier=1.0)),
    "dp_central": Defense(
        aggregation=ClippedMean(), release=CentralGaussian(),
        privacy=ClientLevel(delta=1e-2, clip=0.05, noise_multiplier=0.0),
    ),
    "dp_distributed": Defense(
        local=ClientNoise(), aggregation=FixedDenominatorMean(),
        privacy=ClientLevel(delta=1e-2, clip=0.05, noise_multiplier=0.1, noise="distributed"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("server", [ServerSGD(), ServerSGD(0.5, 0.9)], ids=["sgd", "momentum"])
@pytest.mark.parametrize("share", ["update", "gradient"])
@pytest.mark.parametrize("defense", DEFENSES)
def test_sybils_around_one_victim_expose_its_update(federate, defense, share, server):
    done = federate(
        rounds=1, watched=EVERYBODY, defense=DEFENSES[defense], server=server, local={**ONE_STEP, "share": share}
    )
    full = done.rounds[0].views["server_operator"]
    truth = observe(full, 1, 0)
    assert truth is not None
    joint = attacking.join(done.federation.client_side(), target(done, 0, 5))
    assert joint.adversary == "server_operator + 5 clients"
    found = observe(joint, 1, 0)
    assert found is not None
    assert (found.source, found.exact, found.records) == ("release", True, truth.records)
    clip = joint.public.mixture.clip if joint.public.mixture else None
    sent = full.rounds[0].updates[0].vector.norm()
    expected = truth.gradient * (1.0 if clip is None else min(1.0, clip / float(sent)))
    torch.testing.assert_close(found.gradient, expected, rtol=1e-3, atol=2e-5 * float(truth.gradient.abs().max() + 1))
    alone = observe(target(done, 0, 5).view, 1, 0)
    assert alone is not None
    assert not alone.exact
    assert float((alone.gradient - expected).norm() / expected.norm()) > 0.1, "without colluders there is a mixture"


def test_one_fewer_sybil_leaves_two_who_hide_each_other(federate):
    done = federate(rounds=1, watched=EVERYBODY, local=ONE_STEP)
    found = observe(attacking.join(done.federation.client_side(), target(done, 0, 4)), 1, 0)
    assert found is not None
    assert not found.exact
    updates = done.rounds[0].views["server_operator"].rounds[0].updates
    sizes = done.federation.facts.records
    mean = sum(sizes[c] * updates[c].vector for c in (0, 1)) / (sizes[0] + sizes[1])
    torch.testing.assert_close(found.gradient, -mean / 0.1, rtol=1e-3, atol=1e-5)
    assert found.records == sizes[0] + sizes[1], "it seeks the records of both"


@pytest.mark.parametrize(
    "options", [{"defense": DEFENSES["dp_local"]}, {"poisoner": Backdoor(boost=3.0)}], ids=["noise", "poisoner"]
)
def test_what_colluders_compute_anew_is_what_they_sent(federate, options):
    done = federate(rounds=2, participation=0.7, watched=EVERYBODY, keep=frozenset({1, 2}), **options)
    victim = done.rounds[1].answered[0]
    joint = attacking.join(done.federation.client_side(), target(done, victim, 5, round=2))
    for seen, true in zip(joint.rounds, done.rounds[1].views["server_operator"].rounds, strict=True):
        assert set(seen.updates) == set(true.updates) - {victim}
        assert all(torch.equal(u.vector, true.updates[c].vector) for c, u in seen.updates.items())


def test_an_operator_that_drops_all_but_the_victim_reads_its_update(federate):
    """Selective drop-out: a cohort of one, whoever was invited. A least cohort is the counter."""
    done = federate(rounds=1, watched=EVERYBODY, participation=1 / 6, local=ONE_STEP)
    (victim,) = done.rounds[0].answered
    full = done.rounds[0].views["server_operator"]
    found, truth = observe(released_alone(full, done.federation), 1, victim), observe(full, 1, victim)
    assert found is not None
    assert truth is not None
    assert found.exact
    torch.testing.assert_close(found.gradient, truth.gradient, rtol=1e-3, atol=1e-5)
    outside = observe(done.rounds[0].views["model_recipient"], 1, victim)
    assert outside is not None
    assert not outside.exact, "who doesn't see the cohort doesn't know that it was one client"


def test_a_median_has_no_weights_to_subtract_with(federate):
    done = federate(rounds=1, watched=EVERYBODY, defense=Defense(aggregation=CoordinateMedian()), local=ONE_STEP)
    joint = attacking.join(done.federation.client_side(), target(done, 0, 5))
    found = observe(joint, 1, 0)
    assert joint.public.mixture is None
    assert found is not None
    assert not found.exact


def test_weights_are_the_published_ones_in_an_aggregate_too(federate):
    done = federate(rounds=1, watched=EVERYBODY, weighting="equal", clients=3)
    full = done.rounds[0].views["server_operator"]
    updates = full.rounds[0].updates
    uneven = {c: replace(updates[c], records=100) for c in (0, 2)}
    mixed = full.rounds[0].aggregate
    assert mixed is not None
    hidden = replace(full, rounds=(replace(full.rounds[0], updates={}, aggregate=replace(mixed, records=250)),))
    rest = collude(hidden, {1: uneven}).rounds[0].aggregate
    assert rest is not None
    torch.testing.assert_close(rest.vector, updates[1].vector, rtol=1e-3, atol=1e-5)


def test_nobody_of_weight_is_left():
    mixture = Mixture((0.0, 1.0))
    assert mixture.others(torch.ones(2), (0, 1), {1: torch.ones(2)}) is None
    assert mixture.others(torch.ones(2), (1,), {}) is not None


def test_colluders_are_the_last_clients_beside_the_victim():
    assert attacking.colluders(2, 0, 5) == (3, 4)
    assert attacking.colluders(2, 4, 5) == (2, 3)
    assert attacking.colluders(4, 2, 5) == (0, 1, 3, 4)
    assert attacking.colluders(0, 2, 5) == ()


@pytest.mark.parametrize("name", ["server_operator+2", "server_operator + 2 clients", "server_operator +2"])
def test_a_coalition_has_one_name(name):
    measure = Leakage(DLG(), adversaries=(name, "network"))
    assert measure.coalitions == (
        ("server_operator + 2 clients", "server_operator", 2), ("network", "network", 0),
    )  # fmt: skip
    view = View("server_operator", None, (RoundView(1),))  # pyright: ignore[reportArgumentType]
    assert collude(view, {}, (1, 2)).adversary == "server_operator + 2 clients"


@pytest.mark.parametrize("name", ["model_recipient+2", "server_operator+0", "server_operator+x", "nobody+1"])
def test_a_coalition_that_cannot_be_is_refused(name):
    with pytest.raises(ConfigError, match="adversaries"):
        Leakage(DLG(), adversaries=(name,))
    assert parted(name) in (None, ("model_recipient", 2))


SMALL = [
    "task=digits", "model=mlp", "task.records=8", "task/partition=quantity", "task.partition.sizes=[2,2,2,2]",
    "federation.clients=4", "federation.rounds=1", "leakage=inverting_gradients", "leakage.attack.iterations=5",
    "leakage.victims=4",
]  # fmt: skip


def rows_of(folder, *overrides: str) -> list[dict]:
    prepared = compose([*SMALL, *overrides, f"results_dir={folder}"])
    outcome = run(prepared, {}, Progress("test"))
    assert outcome.status == "complete", outcome.note
    return [json.loads(line) for line in (prepared.path / "metrics.jsonl").read_text().splitlines()]


def test_an_attested_channel_s_operator_is_as_good_as_its_colluders(tmp_path):
    """End to end: what 3 of 4 clients leave hidden is the fourth's update, although no process but theirs read any."""
    rows = rows_of(tmp_path, "defense=tee", "leakage.adversaries=[server_operator,server_operator+2,server_operator+3]")
    errors = {}
    for row in rows:
        if row["metric"] == "gradient_error":
            errors.setdefault(row["adversary"], []).append(row["value"])
            assert row["source"] == "release"
            assert row["exact"] == (row["adversary"] == "server_operator + 3 clients")
            assert row["batch_size"] == "claimed"
    assert {a: len(e) for a, e in errors.items()} == dict.fromkeys(errors, 4)
    assert max(errors["server_operator + 3 clients"]) < 1e-3
    assert min(errors["server_operator"]) > 0.1
    assert min(errors["server_operator + 2 clients"]) > 0.1


def test_a_sealed_downlink_hides_no_model_from_an_operator_with_a_colluder(tmp_path):
    """Each release's key is sealed to every client: with one of them, the operator sees what a plain channel shows."""
    common = ["defense=tee", "federation.rounds=3", "leakage.rounds=[3]", "leakage.over_rounds=true",
              "leakage.adversaries=[server_operator,server_operator+1,server_operator+3]"]  # fmt: skip
    found = []
    for way in ("plain", "sealed"):
        every = rows_of(tmp_path, *common, f"defense.channel.downlink={way}")
        rows = [
            {**r, "reason": None}
            for r in every
            if r.get("adversary") and not r["metric"].endswith(("_seconds", "memory_bytes"))
        ]
        found.append({a: [r for r in rows if r["adversary"] == a] for a in {r["adversary"] for r in rows}})
    plain, sealed = found
    assert {r["source"] for r in plain["server_operator + 3 clients"] if "source" in r} == {"release"}
    for joined in ("server_operator + 1 client", "server_operator + 3 clients"):
        assert sealed[joined] == plain[joined]
    alone = [r for r in sealed["server_operator"] if r["metric"] == "psnr_db"]
    assert {r["status"] for r in alone} == {"not_applicable"}


def test_a_colluder_needs_the_model_that_it_was_sent(federate):
    done = federate(rounds=2, watched=EVERYBODY, keep=EVERYBODY)
    views = done.rounds[1].views
    blind = View("server_operator", views["server_operator"].public, tuple(
        replace(r, sent=None, released=None, updates={}, aggregate=None) for r in views["server_operator"].rounds
    ))  # fmt: skip
    attempt = replace(target(done, 0, 2, round=2), view=blind)
    with pytest.raises(ValueError, match="no model of round 1"):
        attacking.join(done.federation.client_side(), attempt)
    joint = attacking.join(done.federation.client_side(), replace(attempt, view=told(blind, views["participant"])))
    for seen, true in zip(joint.rounds, views["server_operator"].rounds, strict=True):
        assert all(torch.equal(u.vector, true.updates[c].vector) for c, u in seen.updates.items())


def test_disaggregation_from_the_configuration(tmp_path):
    """Half of four clients a round: two rounds don't identify anybody, eight do, and then the update is close."""
    common = ["defense=tee", "federation.rounds=12", "federation.participation=0.5", "leakage.rounds=[12]",
              "federation.local.learning_rate=0.001"]  # fmt: skip
    rows = rows_of(tmp_path, *common, "leakage.over_rounds=true")
    found = [r for r in rows if r["metric"] == "gradient_error"]
    assert len(found) == 4
    assert {r["source"] for r in found} == {"disaggregated"}
    assert all(r["value"] < 0.1 and not r["exact"] for r in found)
    rows = rows_of(tmp_path, *common, "leakage.over_rounds=2")
    lost = [r for r in rows if r["metric"] == "psnr_db"]
    assert {r["status"] for r in lost} == {"not_applicable"}
    assert any("rounds 11 to 12 don't tell server_operator client" in r["reason"] for r in lost)


def test_at_most_so_many_victims_a_round(tmp_path):
    rows = rows_of(tmp_path, "leakage.most=2")
    assert [r["client"] for r in rows if r["metric"] == "psnr_db"] == [0, 1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["leakage.adversaries=[server_operator+4]"], "at most 3 colluding clients"),
        (["leakage.adversaries=[server_operator+1]", "defense=dp_local", "defense.privacy.delta=1e-3",
          "defense.privacy.noise_source=system"], "noise_source=seeded"),
        (["leakage.over_rounds=1"], "over_rounds"),
        (["leakage.most=0"], "most"),
    ],
)  # fmt: skip
def test_what_colluders_cannot_do_is_refused(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose([*SMALL, *overrides, f"results_dir={tmp_path}"])
