"""What an aggregator accepts of attested clients, and everything that it refuses, by name."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from privbench.defenses.tee.platforms.software import firmware
from privbench.defenses.tee.protocol import binding, parts, proof, sealing
from privbench.defenses.tee.protocol.manifest import Manifest, Refused
from privbench.defenses.tee.protocol.opening import Opening
from privbench.defenses.tee.protocol.proof import Proof, Statement

CODE = b"c" * 48
SALT = b"s" * 32
TRAINING = {
    "model": {"_target_": "privbench.benchmarks.tasks.models.MLP"},
    "inputs": {"name": "digits", "shape": [1, 8, 8], "classes": ["a", "b"], "domain": "image"},
    "task": "privbench.benchmarks.tasks.classification.Classification",
    "work": {"_target_": "privbench.benchmarks.federation.settings.LocalWork", "epochs": 1},
    "local": {"_target_": "privbench.defenses.local.local.Local"},
}


@pytest.fixture
def house(build_house: Any) -> Any:
    return build_house({"client_measurements": (CODE.hex(),), "training": TRAINING})


def records(client: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((3, 2), float(client)), torch.arange(3)


def stated(house: Any, opening: Opening, client: int, encoded: bytes) -> Statement:
    return Statement(
        manifest=opening.manifest,
        round=opening.round,
        attempt=opening.attempt,
        client_key=house.manifest.key(client),
        opening=proof.opening_digest(opening),
        commitment=proof.commitment(*records(client), SALT),
        records=(client + 1) * 10,
        training=hashlib.sha256(proof.settings_bytes(TRAINING)).digest(),
        update=hashlib.sha256(encoded).digest(),
        clip=None,
    )


def proven(house: Any, statement: Statement, code: bytes = CODE, host_data: bytes | None = None) -> Proof:
    launched = firmware.Launched(code, host_data or house.manifest.digest)
    made = firmware.evidence(house.firmware.chip, launched, statement.report_data())
    return Proof(statement, made.report, made.certificates)


Change = Callable[[Any, Proof], Any]


def message(house: Any, opening: Opening, client: int, change: Change = lambda h, p: p, **update: Any) -> bytes:
    """What a client sends; ``change`` alters its proof, or leaves it out."""
    encoded = sealing.encode(house.update(client, **update))
    shown = change(house, proven(house, stated(house, opening, client, encoded)))
    fields = shown.fields() if isinstance(shown, Proof) else shown
    payload = encoded if fields is None else sealing.attested(encoded, fields)
    place = sealing.place(opening, client)
    return sealing.sign(sealing.enclose(payload, place, opening.kem_key), place, house.keys[client])


def restated(**changes: Any) -> Change:
    """A guest with the agreed code that says something else."""
    return lambda house, shown: proven(house, replace(shown.statement, **changes))


def claimed(**changes: Any) -> Change:
    """A host that alters what the guest said."""
    return lambda house, shown: replace(shown, statement=replace(shown.statement, **changes))


def aggregators(house: Any, shown: Proof) -> Proof:
    """Evidence with the agreed measurement over an aggregator's binding of the same bytes."""
    said = shown.statement
    data = binding.report_data(binding.AGGREGATOR, said.manifest, said.opening, said.update, said.commitment)
    made = firmware.evidence(house.firmware.chip, firmware.Launched(CODE, house.manifest.digest), data)
    return Proof(said, made.report, made.certificates)


CASES: dict[str, tuple[str, Change]] = {
    "no evidence": ("unattested", lambda h, p: None),
    "other code": ("wrong_training_code", lambda h, p: proven(h, p.statement, code=b"x" * 48)),
    "the aggregator's code": ("wrong_training_code", lambda h, p: proven(h, p.statement, code=b"m" * 48)),
    "an aggregator's evidence": ("evidence", aggregators),
    "launched for another run": ("evidence", lambda h, p: proven(h, p.statement, host_data=b"h" * 32)),
    "an altered statement": ("evidence", claimed(records=7)),
    "an altered report": ("evidence", lambda h, p: replace(p, report=p.report[:-1] + b"\xff")),
    "certificates that are none": ("evidence", lambda h, p: replace(p, certificates=(b"junk",))),
    "of another update": ("relayed_evidence", restated(update=bytes(32))),
    "of another round": ("relayed_evidence", restated(round=2)),
    "of another attempt": ("relayed_evidence", restated(attempt=2)),
    "of another opening": ("relayed_evidence", restated(opening=bytes(32))),
    "of another run": ("relayed_evidence", restated(manifest=bytes(32))),
    "of another client": ("relayed_evidence", lambda h, p: restated(client_key=h.manifest.key(1))(h, p)),
    "other settings": ("wrong_training", restated(training=bytes(32))),
    "another clip": ("wrong_training", restated(clip=1.0)),
    "other records than enrolled": ("inflated_records", restated(records=11)),
    "a field missing": ("malformed_evidence", lambda h, p: {k: v for k, v in p.fields().items() if k != "clip"}),
    "a field too many": ("malformed_evidence", lambda h, p: {**p.fields(), "more": 1}),
    "a field of another kind": ("malformed_evidence", lambda h, p: {**p.fields(), "round": "1"}),
    "a negative number": ("malformed_evidence", lambda h, p: {**p.fields(), "records": -1}),
    "no proof": ("malformed_evidence", lambda h, p: {}),
}


def verdicts(answer: dict[str, Any]) -> list[tuple[int, str]]:
    return [(client, name) for client, name, _ in answer["verdicts"]]


def test_clients_that_prove_what_was_agreed_are_averaged(house: Any):
    opening = house.open()
    answer = house.close(*(message(house, opening, c) for c in range(3)))
    assert verdicts(answer) == [(0, "accepted"), (1, "accepted"), (2, "accepted")]
    assert torch.allclose(sealing.vector(answer["model"]), house.model + 140 / 60)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_not_proven_is_refused_by_name(house: Any, case: str):
    name, change = CASES[case]
    opening = house.open()
    answer = house.close(message(house, opening, 0, change), *(message(house, opening, c) for c in (1, 2)))
    assert verdicts(answer) == [(0, name), (1, "accepted"), (2, "accepted")]
    assert torch.allclose(sealing.vector(answer["model"]), house.model + (2 * 20 + 3 * 30) / 50)


def test_a_claim_beyond_the_enrolled_records_is_refused_with_a_good_proof(house: Any):
    opening = house.open()
    more = message(house, opening, 0, restated(records=1000), records=1000)
    answer = house.close(more, *(message(house, opening, c) for c in (1, 2)))
    assert verdicts(answer)[0] == (0, "inflated_records")


def other_data(house: Any, shown: Proof) -> Proof:
    return restated(commitment=proof.commitment(*records(9), SALT))(house, shown)


def test_a_client_keeps_the_data_of_its_first_round_across_restarts(house: Any):
    opening = house.open()
    first = house.close(message(house, opening, 0, other_data), *(message(house, opening, c) for c in (1, 2)))
    stored = house.stored(opening, first)
    house.aggregator = house.new()
    house.aggregator.resume(stored)
    opening = house.open(2)
    answer = house.close(message(house, opening, 0), message(house, opening, 1), message(house, opening, 2))
    assert verdicts(answer) == [(0, "data_changed"), (1, "accepted"), (2, "accepted")]


def test_whoever_was_refused_has_committed_to_nothing(house: Any):
    opening = house.open()
    refused = message(house, opening, 0, restated(training=bytes(32), commitment=b"d" * 32))
    house.close(refused, *(message(house, opening, c) for c in (1, 2)))
    opening = house.open(2)
    answer = house.close(*(message(house, opening, c) for c in range(3)))
    assert verdicts(answer)[0] == (0, "accepted")


def test_a_commitment_hides_records_and_holds_to_them():
    x, y = torch.randn(5, 3), torch.arange(5)
    made = {proof.commitment(x, y, SALT)}
    assert made == {proof.commitment(x.clone(), y.clone(), SALT)}
    made |= {
        proof.commitment(x, y, b"t" * 32),
        proof.commitment(x, y.flip(0), SALT),
        proof.commitment(x[:4], y[:4], SALT),
    }
    changed = x.clone()
    changed[2, 1] += 1e-6
    made |= {proof.commitment(changed, y, SALT), proof.commitment(x.flip(0), y.flip(0), SALT)}
    made |= {proof.commitment(x[:0], y[:0], SALT)}
    assert len(made) == 7


def test_every_field_of_a_statement_is_bound():
    parts_ = dict.fromkeys(("manifest", "client_key", "opening", "commitment", "training", "update"), bytes(32))
    said = Statement(**parts_, round=1, attempt=1, records=1, clip=None)
    changes: dict[str, Any] = {**dict.fromkeys(parts_, b"x" * 32), "round": 2, "attempt": 2, "records": 2, "clip": 1.0}
    found = {said.report_data(), *(replace(said, **{n: v}).report_data() for n, v in changes.items())}
    assert len(found) == 1 + len(changes)


def test_a_manifest_without_attested_clients_has_the_bytes_that_it_had(build_house: Any, house: Any):
    plain = build_house().manifest
    assert b"client_measurements" not in plain.canonical()
    assert b"training" not in plain.canonical()
    import json

    raw = json.loads(house.manifest.canonical())
    assert Manifest.read(raw).digest == house.manifest.digest
    for lost in ("training", "client_measurements"):
        with pytest.raises(Refused, match="malformed_manifest"):
            Manifest.read({k: v for k, v in raw.items() if k != lost})


def test_the_clip_of_a_plan_is_the_clients_only_where_they_clip(build_house: Any):
    from privbench.benchmarks.build import describe
    from privbench.defenses.accounting import RecordLevel
    from privbench.defenses.local import DPSGD, Local

    manifest = build_house().manifest
    private = replace(manifest, privacy=describe(RecordLevel(delta=1e-3, clip=0.5, epsilon=8.0)))
    assert parts.clip(private, DPSGD()) == 0.5
    assert parts.clip(private, Local()) is None
    assert parts.clip(manifest, Local()) is None
