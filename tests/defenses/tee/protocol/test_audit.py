"""Audits of whole chains: an honest run holds, and each alteration is refused by its name."""

import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from privbench.defenses.tee import certificates
from privbench.defenses.tee.protocol import downlink
from privbench.defenses.tee.protocol.audit import Audit, assurance, audit
from privbench.defenses.tee.protocol.opening import Head
from privbench.defenses.tee.wire import pack

from .conftest import CLIENTS, FILES, ROUNDS, Forge, authority, failed


def epsilon_lowered(forge: Forge) -> list[dict[str, Any]]:
    first, *others = map(dict, forge.receipt(3).statements)
    return [{**first, "epsilon": first["epsilon"] / 2}, *others]


def test_an_honest_run_holds(honest: Forge) -> None:
    found = audit(honest.folder, auditor=honest.auditor, head=Head(3, honest.digest(3)))
    assert (found.failed, found.assurance, found.head) == ([], "software", Head(3, honest.digest(3)))
    assert [r.receipt.attempt for r in found.rounds if r.receipt] == [1, 2, 1]
    assert assurance(honest.folder) == "software"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_no_byte_of_a_file_can_be_altered(forge: Forge, name: str, share: float) -> None:
    raw = bytearray((forge.folder / name).read_bytes())
    raw[round(share * (len(raw) - 1))] ^= 1
    (forge.folder / name).write_bytes(raw)
    assert failed(forge, auditor=forge.auditor)


MISSING = {
    "manifest.json": ["manifest"],
    "countersignatures.json": ["countersignatures"],
    "certs/0.der": ["report.certificates", "report.tcb_order", "report.tcb_floor"],
    "certs/1.der": [
        "certs",
        "report.chain_issuers",
        "report.chain_signatures",
        "report.root_key",
        "report.software_tee",
    ],
    "certs/2.der": [],  # the root lies in roots/ too
    "roots/0.der": ["report.root_key"],
    "round-0002.report.bin": ["report"],
    "round-0002.receipt.json": ["rounds", "previous_receipt", "start_model"],
    "round-0002.full-0.bin": ["full_receipt"],
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_file_is_named(forge: Forge, name: str) -> None:
    (forge.folder / name).unlink()
    assert sorted(failed(forge, auditor=forge.auditor)) == sorted(MISSING[name])


def resign(**changes: Any) -> Callable[[Forge], Any]:
    return lambda forge: forge.resign(3, **changes)


CHANGES: dict[str, tuple[Callable[[Forge], Any], list[str]]] = {
    "epsilon lowered": (lambda f: f.resign(3, statements=epsilon_lowered(f)), ["epsilon"]),
    "epsilon of an earlier round": (lambda f: f.resign(3, statements=f.receipt(2).statements), ["epsilon"]),
    "no statement": (resign(statements=[]), ["epsilon"]),
    "one statement": (lambda f: f.resign(3, statements=f.receipt(3).statements[:1]), ["epsilon"]),
    "no longer simulated": (
        lambda f: f.resign(3, statements=[{**s, "simulated": False} for s in f.receipt(3).statements]),
        ["epsilon"],
    ),
    "an epsilon of no plan": (
        lambda f: f.resign(3, statements=[{**s, "epsilon_replace_one": 0.1} for s in f.receipt(3).statements]),
        ["epsilon"],
    ),
    "noise lowered": (resign(noise_multiplier=0.1), ["noise_multiplier"]),
    "no noise": (resign(noise_multiplier=None), ["noise_multiplier"]),
    "clip": (resign(clip=50.0), ["clip"]),
    "rule": (resign(rule="privbench.defenses.aggregation.Mean"), ["rule"]),
    "sampling": (resign(sampling="poisson"), ["sampling"]),
    "sampling rate": (resign(sampling_rate=0.1), ["sampling_rate"]),
    "delta": (resign(delta=0.1), ["delta"]),
    "another run": (resign(run="another"), ["run"]),
    "another manifest's digest": (resign(manifest="00" * 32), ["run"]),
    "wrong previous receipt": (resign(previous="00" * 32), ["previous_receipt"]),
    "wrong start": (resign(start_model="00" * 32), ["start_model"]),
    "too few accepted": (
        lambda f: f.resign(3, accepted=1, inputs=f.receipt(3).inputs[:2]),
        ["least_cohort"],
    ),
    "more accepted than invited": (resign(accepted=5, refused={}, inputs=[f"{n:064x}" for n in range(5)]), ["cohort"]),
    "fewer invited": (resign(invited=3), ["cohort"]),
    "an input too few": (lambda f: f.resign(3, inputs=f.receipt(3).inputs[1:]), ["inputs"]),
    "a refusal kept quiet": (resign(refused={}), ["inputs"]),
    "another round": (resign(round=4), ["round"]),
    "other evidence": (
        lambda f: f.resign(3, evidence={**f.receipt(3).evidence, "signed_sha256": "00" * 32}),
        ["evidence"],
    ),
    "other nonces": (
        lambda f: f.resign(3, evidence={**f.receipt(3).evidence, "nonce_root": "00" * 32}),
        ["report.report_data"],
    ),
    "a key used again": (lambda f: f.round(3, f.digest(2), kem=b"2"), ["kem_key"]),
    "another key": (lambda f: f.resign(3, Ed25519PrivateKey.generate()), ["receipt_signature"]),
    "a model in between": (lambda f: f.resign(2, model="00" * 32), ["previous_receipt", "start_model"]),
    "a receipt dropped": (lambda f: f.path(2, "receipt.json").unlink(), ["rounds", "previous_receipt", "start_model"]),
    "a report dropped": (lambda f: f.path(2, "report.bin").unlink(), ["report"]),
    "reports swapped": (lambda f: swap(f, "report.bin"), ["report.report_data", "evidence"]),
    "receipts swapped": (
        lambda f: swap(f, "receipt.json"),
        ["report.report_data", "evidence", "round", "previous_receipt", "start_model"],
    ),
    "rounds swapped": (
        lambda f: [swap(f, kind) for kind in ("receipt.json", "report.bin")],
        ["round", "previous_receipt", "start_model"],
    ),
    "a round duplicated": (lambda f: duplicate(f), ["rounds", "kem_key", "round", "previous_receipt", "start_model"]),
    "a second attempt beside": (
        lambda f: shutil.copy(f.path(2, "receipt.json"), f.path(2, "attempt-2.receipt.json")),
        ["layout"],
    ),
    "a second attempt as a round": (
        lambda f: f.round(4, f.digest(2), round=2, attempt=3),
        ["rounds", "round", "previous_receipt"],
    ),
    "one client didn't countersign": (lambda f: f.countersign(f.clients[1:]), ["countersignatures"]),
    "somebody else countersigned": (
        lambda f: f.countersign([Ed25519PrivateKey.generate(), *f.clients[1:]]),
        ["countersignatures"],
    ),
    "another root": (lambda f: (f.folder / "roots/0.der").write_bytes(authority(1)[1]), ["report.root_key"]),
    "a certificate of nobody here": (
        lambda f: (f.folder / "certs/9.der").write_bytes(authority(1)[0].certificates[0]),
        ["certs"],
    ),
}


def swap(forge: Forge, kind: str) -> None:
    one, other = forge.path(1, kind), forge.path(2, kind)
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)


def duplicate(forge: Forge) -> None:
    for kind in ("receipt.json", "report.bin"):
        shutil.copy(forge.path(3, kind), forge.path(4, kind))


@pytest.mark.parametrize("name", CHANGES)
def test_an_alteration_is_refused_by_name(forge: Forge, name: str) -> None:
    change, expected = CHANGES[name]
    change(forge)
    assert sorted(failed(forge)) == sorted(expected)


def test_a_wrong_measurement(another: Callable[..., Forge]) -> None:
    assert failed(another(measurement=bytes(48))) == ["report.measurement"]


def test_epsilon_with_sampling_is_recomputed(another: Callable[..., Forge], honest: Forge) -> None:
    facts = {**honest.manifest.facts, "participation": 0.5, "sampling": "poisson"}
    forge = another(changes={"facts": facts, "least_cohort": 0})
    assert failed(forge) == []
    forge.resign(3, statements=epsilon_lowered(forge))
    assert failed(forge) == failed(forge, every_epsilon=False) == ["epsilon"]


def test_a_lie_about_an_earlier_epsilon_needs_every_round(forge: Forge) -> None:
    forge.resign(3, statements=forge.receipt(3).statements, previous=forge.resign(2, statements=[]).hex())
    assert failed(forge) == ["epsilon"]
    found = audit(forge.folder, every_epsilon=False)
    assert found.accepted
    assert any("not recomputed" in sentence for sentence in found.cannot_show)


def test_a_chain_cut_short_needs_a_kept_head(forge: Forge) -> None:
    kept = Head(3, forge.digest(3))
    for kind in ("receipt.json", "report.bin", "full-0.bin"):
        forge.path(3, kind).unlink()
    found = audit(forge.folder)
    assert found.accepted
    assert {"finished": "unfinished: 2 of 3 rounds"}.items() <= {c.name: c.reason for c in found.checks.checks}.items()
    assert any(sentence.startswith("Rollback") for sentence in found.cannot_show)
    assert failed(forge, head=kept) == ["rollback"]
    assert failed(forge, head=Head(2, forge.digest(2))) == []
    assert failed(forge, head=Head(2, bytes(32))) == ["rollback"]
    assert failed(forge, head=Head()) == []


def test_a_chain_of_nothing_assures_nothing(another: Callable[..., Forge]) -> None:
    assert failed(another(rounds=0)) == ["rounds"]


def test_rounds_beyond_those_agreed(another: Callable[..., Forge]) -> None:
    assert failed(another(rounds=ROUNDS + 1)) == ["rounds", "epsilon"]


def test_certificates_are_judged_at_the_given_time(honest: Forge) -> None:
    assert failed(honest, at=datetime.now(UTC) + timedelta(days=31)) == ["report.chain_validity"]
    with pytest.raises(ValueError, match="offset"):
        audit(honest.folder, at=datetime(2026, 1, 1))


def final_model(found: Audit) -> tuple[str, str]:
    """The check's status and reason."""
    return next((c.status, c.reason) for c in found.checks.checks if c.name == "final_model")


def test_the_final_model_is_compared(forge: Forge, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.write_bytes(b"weights")
    assert failed(forge, model=model) == ["final_model"]
    forge.resign(3, model=hashlib.sha256(b"weights").hexdigest())
    assert failed(forge, model=model) == []


def test_a_sealed_model_is_compared_by_a_recipient(another: Callable[..., Forge], tmp_path: Path) -> None:
    """The receipts' digests are salted; the salt comes from the last release's key, which recipients alone open."""
    keys = [X25519PrivateKey.generate() for _ in range(CLIENTS + 1)]
    public = [k.public_key().public_bytes_raw() for k in keys]
    recipients = tuple(k.hex() for k in public)
    forge = another(recipients=recipients)
    model, folder, digest = tmp_path / "model", forge.folder, forge.manifest.digest
    model.write_bytes(b"weights")
    key = downlink.new_key()
    forge.resign(3, model=downlink.digest(b"weights", downlink.salt(key)).hex())
    sealed = downlink.seal((key, b""), (downlink.new_key(), b""), digest, 3, public, CLIENTS)

    def store(round: int = 3, keys: Any = sealed.keys) -> None:
        (folder / "release.bin").write_bytes(pack({"round": round, "keys": keys}))

    store()
    found = audit(folder, model=model)
    assert found.accepted
    assert final_model(found)[0] == "not-applicable"
    assert "no recipient's key was given" in final_model(found)[1]
    assert any("digests are salted" in said for said in found.cannot_show)
    for own in (keys[0], keys[-1]):
        assert final_model(audit(folder, model=model, recipient=own))[0] == "pass"
    stranger = audit(folder, model=model, recipient=X25519PrivateKey.generate())
    assert final_model(stranger) == ("fail", "recipient: the manifest names no such recipient")
    model.write_bytes(b"weightz")
    assert failed(forge, model=model, recipient=keys[0]) == ["final_model"]
    model.write_bytes(b"weights")
    altered: list[dict[str, Any]]
    altered = [{"round": 2}, {"keys": 3}, {"keys": list(sealed.keys[1:])}, {"keys": [b""] * len(public)}]
    for stored in altered:
        store(**stored)
        assert failed(forge, model=model, recipient=keys[0]) == ["final_model"]
    (folder / "release.bin").write_bytes(b"x")
    assert failed(forge, model=model, recipient=keys[0]) == ["final_model"]


def test_roots_of_the_caller_replace_the_folders(honest: Forge) -> None:
    own, other = (certificates.load(authority(n)[1])[0] for n in (0, 1))
    assert failed(honest, roots=[other, own]) == []
    assert failed(honest, roots=[other]) == ["report.root_key"]


def test_a_platform_with_amds_keys_takes_no_root_from_the_folder(another: Callable[..., Forge]) -> None:
    refused = failed(another(changes={"platform": "sev_snp"}), tcb_floor="none", allow=["software-tee"])
    assert {"report.software_tee", "report.root_key"} <= set(refused)


def test_what_all_in_one_guest_leaves_open_is_said(another: Callable[..., Forge], honest: Forge) -> None:
    found = audit(another(changes={"platform": "sev_snp"}).folder, host_data=None)
    assert any("all of them in one guest" in said for said in found.cannot_show)
    assert any("HOST_DATA was not compared" in said for said in found.cannot_show)
    assert "report.host_data" not in found.failed
    assert not any("one guest" in said for said in audit(honest.folder).cannot_show)


def test_host_data_is_demanded_unless_waived(another: Callable[..., Forge]) -> None:
    forge = another(host_data=b"\x01" * 32)
    assert failed(forge) == failed(forge, host_data=None) == ["report.host_data"]
    found = audit(forge.folder, host_data=False)
    assert found.accepted
    assert any("HOST_DATA" in sentence for sentence in found.cannot_show)


def test_an_auditor_opens_the_full_receipts(forge: Forge) -> None:
    assert failed(forge, auditor=X25519PrivateKey.generate()) == ["full_receipt"]
    shutil.copy(forge.path(1, "full-0.bin"), forge.path(2, "full-0.bin"))
    assert failed(forge) == []
    assert failed(forge, auditor=forge.auditor) == ["full_receipt"]


def test_a_hundred_rounds_take_about_a_second(another: Callable[..., Forge], honest: Forge) -> None:
    forge = another(changes={"facts": {**honest.manifest.facts, "rounds": 100}}, rounds=100)
    started = time.perf_counter()
    assert failed(forge) == []
    assert time.perf_counter() - started < 10  # 0.6 s on two idle cores


def test_it_loads_without_torch() -> None:
    code = "import sys, privbench.defenses.tee.protocol.command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code]).returncode == 0
