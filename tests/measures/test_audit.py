"""Audits and membership inference in real runs."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.experiment import prepare
from privbench.benchmarks.measures import audit as measure
from privbench.benchmarks.measures.audit import by_layer
from privbench.benchmarks.measures.inference import Claim, claim, verdict
from privbench.benchmarks.progress import Progress
from privbench.benchmarks.run import run
from privbench.benchmarks.sweep import compose
from privbench.defenses import Defense
from privbench.defenses.accounting import ClientLevel, Facts, RecordLevel
from privbench.defenses.channel import SecAgg


def named(rows: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["metric"] == metric]


SMALL = ["task=digits", "task.records=200", "model=mlp", "federation.clients=4", "federation.rounds=2"]
SMALL += ["federation.workers=1", "defense.privacy.delta=1e-4"]
PLAIN = SMALL[:-1]
CANARIES = ["inference=canaries", "inference.canaries.count=60"]
NO_NOISE = ["defense.privacy.epsilon=null", "defense.privacy.noise_multiplier=0"]


SIGHTED = {
    "records, DP-SGD": [*SMALL, "defense=dp_local", *NO_NOISE, *CANARIES],
    "records, plain": [*PLAIN, *CANARIES],
    "records, shared gradients": [*PLAIN, "federation=fedsgd", "federation.rounds=2", *CANARIES],
    "clients, central": [*SMALL, "defense=dp_central", *NO_NOISE, *CANARIES],
    "clients, shared gradients": [
        *SMALL, "federation=fedsgd", "federation.rounds=2", "defense=dp_central", *NO_NOISE, *CANARIES,
    ],
    "clients, attested": [*SMALL, "defense=tee_dp", *NO_NOISE, *CANARIES],
}  # fmt: skip


@pytest.mark.parametrize("case", SIGHTED)
def test_without_noise_scores_tell_who_is_in(tmp_path, case, do):
    """Whatever the unit, the kind of update and the channel, scores have the right sign."""
    manifest, rows, path = do(tmp_path, *SIGHTED[case])
    with np.load(path / "artifacts" / "audit.npz") as file:
        included, scores = file["included"], {k: file[k] for k in file.files if k.startswith("scores_")}
    assert manifest["canaries"] == {
        "unit": case.split(",")[0].removesuffix("s"),
        "form": "gradient",
        "count": 60,
        "included": int(included.sum()),
    }
    for adversary, found in scores.items():
        inside, outside = found[included], found[~included]
        assert np.median(inside) > np.quantile(outside, 0.9), adversary
    best = max(named(rows, "empirical_epsilon"), key=lambda row: row["value"])
    assert best["value"] > 0.5
    assert best["proven"] is None
    assert "status" not in best
    assert all(row["status"] == "not_applicable" for row in named(rows, "audit_power"))


@pytest.mark.parametrize("unit", ["record", "client"])
def test_canary_records_are_trained_on(tmp_path, unit, do):
    options = [*PLAIN, "inference=canary_records", "inference.canaries.count=40", f"inference.canaries.unit={unit}"]
    options += ["federation.local.epochs=20", "federation.weighting=equal", "federation.rounds=4"]
    _, _, path = do(tmp_path, *options)
    with np.load(path / "artifacts" / "audit.npz") as file:
        included, scores = file["included"], file["scores_server_operator"]
    assert scores[included].mean() > scores[~included].mean() + 0.3


def test_all_of_a_runs_audits_share_its_confidence(tmp_path, do):
    options = [*SMALL, "defense=dp_local", "epsilon=2", "inference=canaries", "inference.canaries.count=1000"]
    _, rows, path = do(tmp_path, *options)
    found = named(rows, "empirical_epsilon")
    assert [row["adversary"] for row in found] == ["server_operator", "model_recipient"]
    # All canaries and both layers, for each of two adversaries.
    assert {row["audits"] for row in found} == {6}
    assert all(row["proven"] == pytest.approx(2, abs=0.01) and row["value"] <= 2 for row in found)
    assert {(r["unit"], r["adjacency"], r["simulated_population"]) for r in found} == {("record", "add_remove", False)}
    assert all(0 <= row["value"] <= 1 and row["bug"] == "half the noise" for row in named(rows, "audit_power"))
    assert path.name == compose([*options, f"results_dir={tmp_path}"]).id


def test_an_audited_run_goes_on_where_it_was_cut_off(tmp_path, monkeypatch, do):
    options = [*SMALL, "defense=dp_central", "epsilon=2", "federation.rounds=3", *CANARIES]
    _, whole, _ = do(tmp_path / "a", *options)
    prepared = compose([*options, f"results_dir={tmp_path / 'b'}"])
    original = measure.Audit.rows

    def cut(self, scene):
        if scene.finished.round == 3:
            raise RuntimeError("cut off")
        yield from original(self, scene)

    monkeypatch.setattr(measure.Audit, "rows", cut)
    assert run(prepared, {}, Progress("test")).status == "failed"
    monkeypatch.setattr(measure.Audit, "rows", original)
    _, resumed, _ = do(tmp_path / "b", *options)
    assert named(resumed, "empirical_epsilon") == named(whole, "empirical_epsilon")


def test_without_inference_a_run_keeps_its_name_and_its_numbers(tmp_path):
    plain = compose([*PLAIN, f"results_dir={tmp_path}"])
    assert "inference" not in plain.settings
    older = {k: v for k, v in plain.config.items() if k != "inference"}
    assert prepare(older).id == plain.id
    assert compose([*PLAIN, *CANARIES, f"results_dir={tmp_path}"]).id != plain.id


def test_coins_change_no_other_draw():
    """Batches are drawn from enrolled records, in or out: only the coins' own canaries differ."""
    one = compose([*PLAIN, *CANARIES, "results_dir=/tmp/unused"]).federation
    other = compose([*PLAIN, *CANARIES, "results_dir=/tmp/unused", "seed=1"]).federation
    assert one.facts.records == other.facts.records == (65, 65, 65, 65)


def test_layers_are_those_of_the_model():
    federation = compose([*PLAIN, "inference=canaries", "results_dir=/tmp/unused"]).federation
    assert federation.planted is not None
    parts = by_layer(federation.planted, federation.layout)
    assert sum(map(len, parts.values())) == 1000
    vector = torch.zeros(federation.layout.size)
    for name, numbers in parts.items():
        vector[federation.planted.entries[numbers]] = 1
        touched = {n.rpartition(".")[0] for n, part in federation.layout.views(vector).items() if part.any()}
        assert touched == {name}
        vector.zero_()


@pytest.mark.parametrize(("adversary", "like"), [("participant", "receipt_reader"), ("active_operator", None)])
def test_an_adversary_without_a_claim_has_that_of_one_who_sees_as_much(adversary, like):
    facts = Facts(20, 5, 0.5, "poisson", (9,) * 20, (3,) * 20, (1,) * 20, operator_reads_updates=False)
    plan = ClientLevel(delta=1e-3, clip=1.0, noise_multiplier=2.0).bind(facts)
    federation: Any = SimpleNamespace(plan=plan, defense=Defense(channel=SecAgg()))
    ledger = [plan.charge(n, range(10)) for n in range(1, 6)]
    found = claim(federation, ledger, adversary).epsilon
    assert found == (math.inf if like is None else claim(federation, ledger, like).epsilon)
    by_clients = RecordLevel(delta=1e-3, clip=1.0, noise_multiplier=2.0).bind(facts)
    federation = SimpleNamespace(plan=by_clients, defense=Defense())
    ledger = [by_clients.charge(n, range(10)) for n in range(1, 6)]
    operator = claim(federation, ledger, "server_operator").epsilon
    assert claim(federation, ledger, adversary).epsilon == operator < math.inf


@pytest.mark.parametrize(("honest", "claimed"), [(1.0, False), (0.95, True)])
def test_a_participant_knows_its_own_share_of_the_noise(honest, claimed):
    facts = Facts(20, 5, 1.0, "fixed", (9,) * 20, (3,) * 20, (1,) * 20, operator_reads_updates=False)
    plan = ClientLevel(delta=1e-3, clip=1.0, noise_multiplier=2.0, noise="distributed", honest=honest).bind(facts)
    federation: Any = SimpleNamespace(plan=plan, defense=Defense(channel=SecAgg()))
    ledger = [plan.charge(n, range(20)) for n in range(1, 6)]
    assert math.isfinite(claim(federation, ledger, "participant").epsilon) == claimed


def test_more_than_is_proven_is_a_bug():
    claimed = Claim("record", 2.0, 1e-5)
    assert verdict(2.0, claimed, "x") == {}
    assert claimed.stated["proven"] == 2.0
    said = verdict(2.1, claimed, "server_operator")
    assert said["status"] == "violated"
    assert "at least 2.1 against server_operator, and 2 is claimed" in said["reason"]


@pytest.mark.parametrize(
    ("overrides", "field", "hint"),
    [
        (["inference.canaries.count=9999"], "inference.canaries.count", "the parameters"),
        (["inference.canaries.unit=client"], "federation.weighting", "equal"),
        (["defense=dp_local", "inference.canaries.unit=client"], "inference.canaries.unit", "null, or record"),
        (["poisoning=backdoor"], "poisoning", "none"),
        (["leakage=dlg"], "leakage", "none"),
        (["defense=tee_clients"], "defense.channel.attest_clients", "false"),
        (["inference.adversaries=[network]"], "inference.adversaries", "one of server_operator"),
        (["inference.adversaries=[participant,participant]"], "inference.adversaries", "different"),
        (["inference.guesses=3"], "inference.guesses", "even"),
        (["inference.confidence=1"], "inference.confidence", r"\(0, 1\)"),
    ],
)
def test_what_cannot_be_audited_is_refused(tmp_path, overrides, field, hint):
    with pytest.raises(ConfigError, match=hint) as caught:
        compose([*PLAIN, *CANARIES, *overrides, f"results_dir={tmp_path}"])
    assert caught.value.field == field
