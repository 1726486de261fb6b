"""Receipts: what is signed, what is read back, and what is refused. securesystemslib checks the format and the PAE."""

import base64
import hashlib
import json
from dataclasses import fields, replace
from typing import Any

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey  # pyright: ignore[reportPrivateImportUsage]

from privbench.defenses.tee.protocol import receipts
from privbench.defenses.tee.protocol.manifest import Refused, public
from privbench.defenses.tee.protocol.receipts import Receipt

KEY = Ed25519PrivateKey.generate()
AUDITOR = X25519PrivateKey.generate()
ROSTER = [bytes([n]) * 32 for n in range(3)]
DIGEST = b"\x07" * 32


def entry(client: int, verdict: str = "accepted") -> dict[str, Any]:
    salt, sealed = bytes([client & 255, 1]) * 16, bytes([client & 255, 2]) * 16
    return {"client": client, "salt": salt, "sealed_sha256": sealed, "bytes": 9, "verdict": verdict, "reason": ""}


ENTRIES = [entry(0), entry(2, "stale"), entry(-1, "malformed")]


def committed(one: dict[str, Any]) -> str:
    key = ROSTER[one["client"]] if one["client"] >= 0 else b""
    return receipts.commitment(one["salt"], key, one["sealed_sha256"]).hex()


def make(**changes: Any) -> Receipt:
    made = Receipt(
        run="r",
        manifest="0a" * 32,
        round=3,
        attempt=1,
        previous="0b" * 32,
        evidence=dict.fromkeys(receipts.EVIDENCE, "0c" * 32),
        start_model="0d" * 32,
        model="0e" * 32,
        state="0f" * 32,
        invited=3,
        accepted=1,
        refused={"stale": 1, "malformed": 1},
        inputs=sorted(map(committed, ENTRIES)),
        rule="privbench.defenses.aggregation.Mean",
        clip=0.5,
        noise_multiplier=None,
        sampling="poisson",
        sampling_rate=0.25,
        delta=1e-5,
        statements=[{"unit": "client", "adversary": "server_operator", "epsilon": None, "delta": 1e-5}],
        time="2026-11-24T12:00:00+00:00",
    )
    return replace(made, **changes)


def rewritten(envelope: bytes, change: Any) -> bytes:
    """The envelope with its statement changed in place, in canonical form."""
    outer = json.loads(envelope)
    statement = json.loads(base64.b64decode(outer["payload"]))
    change(statement)
    outer["payload"] = base64.b64encode(rfc8785.dumps(statement)).decode()
    return rfc8785.dumps(outer)


def refusal(envelope: bytes) -> str:
    with pytest.raises(Refused) as caught:
        receipts.read(envelope)
    return caught.value.name


def test_what_is_signed_is_read_back() -> None:
    envelope = receipts.sign(make(), KEY)
    read, payload = receipts.read(envelope)
    assert read == make() == receipts.verify_signature(envelope, public(KEY))
    assert receipts.digest(envelope) == hashlib.sha256(payload).digest()


def test_the_payload_is_an_in_toto_statement_about_the_model() -> None:
    statement = json.loads(receipts.read(receipts.sign(make(), KEY))[1])
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"] == [{"name": "model", "digest": {"sha256": "0e" * 32}}]
    assert statement["predicateType"] == "https://privbench.dev/round-receipt/v1"
    assert set(statement["predicate"]) == {f.name for f in fields(Receipt)} - {"model"}


def test_another_implementation_verifies_the_envelope() -> None:
    envelope = Envelope.from_dict(json.loads(receipts.sign(make(), KEY)))
    assert envelope.payload_type == "application/vnd.in-toto+json"
    for key in (KEY, Ed25519PrivateKey.generate()):
        name = hashlib.sha256(public(KEY)).hexdigest()
        theirs = SSlibKey(name, "ed25519", "ed25519", {"public": public(key).hex()})
        if key is KEY:
            assert set(envelope.verify([theirs], 1)) == {name}
        else:
            with pytest.raises(VerificationError):
                envelope.verify([theirs], 1)


def test_another_key_did_not_sign_it() -> None:
    with pytest.raises(Refused, match="unsigned_receipt"):
        receipts.verify_signature(receipts.sign(make(), KEY), public(Ed25519PrivateKey.generate()))


def test_no_field_can_be_altered_under_the_signature() -> None:
    envelope = receipts.sign(make(), KEY)
    lowered = rewritten(envelope, lambda s: s["predicate"].update(accepted=2))
    assert receipts.read(lowered)[0].accepted == 2
    with pytest.raises(Refused, match="unsigned_receipt"):
        receipts.verify_signature(lowered, public(KEY))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("round", 0),
        ("round", True),
        ("round", 1.5),
        ("attempt", "1"),
        ("previous", "0B" * 32),
        ("previous", "0b" * 31),
        ("evidence", {"signed_sha256": "0c" * 32}),
        ("invited", -1),
        ("accepted", None),
        ("refused", {"stale": 0}),
        ("refused", ["stale"]),
        ("inputs", ["ff" * 32, "00" * 32]),
        ("inputs", ["00" * 32, "00" * 32]),
        ("rule", ""),
        ("clip", "0.5"),
        ("clip", False),
        ("sampling_rate", []),
        ("statements", [{"unit": "client", "epsilon": 1, "delta": 0.1}]),
        ("statements", [{"unit": "client", "adversary": "x", "epsilon": -1, "delta": 0.1}]),
        ("statements", None),
        ("time", "yesterday"),
        ("time", "2026-11-24T12:00:00"),
        ("time", "2026-13-24T12:00:00Z"),
        ("surplus", 1),
        ("model", "0e" * 32),
    ],
)
def test_a_field_of_another_kind_is_malformed(name: str, value: Any) -> None:
    assert refusal(rewritten(receipts.sign(make(), KEY), lambda s: s["predicate"].update({name: value}))) == (
        "malformed_receipt"
    )


@pytest.mark.parametrize("name", [f.name for f in fields(Receipt) if f.name != "model"])
def test_a_missing_field_is_malformed(name: str) -> None:
    assert refusal(rewritten(receipts.sign(make(), KEY), lambda s: s["predicate"].pop(name))) == "malformed_receipt"


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"),
        lambda s: s["subject"].append(s["subject"][0]),
        lambda s: s["subject"][0].update(name="data"),
        lambda s: s["subject"][0]["digest"].update(sha512="00"),
        lambda s: s.update(subject=[]),
        lambda s: s.update(subject="model"),
        lambda s: s.update(more=1),
    ],
)
def test_another_statement_is_malformed(change: Any) -> None:
    assert refusal(rewritten(receipts.sign(make(), KEY), change)) == "malformed_receipt"


def test_an_envelope_has_one_spelling() -> None:
    envelope = receipts.sign(make(), KEY)
    outer = json.loads(envelope)
    assert refusal(json.dumps(outer).encode()) == "malformed_receipt"
    spaced = json.dumps(json.loads(base64.b64decode(outer["payload"]))).encode()
    assert refusal(rfc8785.dumps({**outer, "payload": base64.b64encode(spaced).decode()})) == "malformed_receipt"
    assert refusal(rfc8785.dumps({**outer, "signatures": outer["signatures"] * 2})) == "malformed_receipt"
    assert refusal(rfc8785.dumps({**outer, "payloadType": "application/json"})) == "malformed_receipt"
    assert refusal(rfc8785.dumps({**outer, "more": 1})) == "malformed_receipt"
    assert refusal(b"[" * 100_000) == refusal(b"9" * 100_000) == refusal(b"NaN") == "malformed_receipt"


def test_what_could_not_be_read_is_not_signed() -> None:
    for wrong in ({"clip": float("inf")}, {"round": 0}, {"inputs": ["ff" * 32, "00" * 32]}, {"run": b"r"}):
        with pytest.raises(Refused, match="malformed_receipt"):
            receipts.sign(make(**wrong), KEY)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary(max_size=300))
def test_no_bytes_crash_it(raw: bytes) -> None:
    with pytest.raises(Refused):
        receipts.read(raw)


@given(st.sampled_from(["_type", "subject", "predicateType", "predicate"]), JSON)
def test_no_statement_crashes_it(name: str, value: Any) -> None:
    assert refusal(rewritten(receipts.sign(make(), KEY), lambda s: s.update({name: value}))) == "malformed_receipt"


@given(st.sampled_from([f.name for f in fields(Receipt) if f.name != "model"]), JSON)
def test_no_field_crashes_it(name: str, value: Any) -> None:
    envelope = rewritten(receipts.sign(make(), KEY), lambda s: s["predicate"].update({name: value}))
    try:
        read, _ = receipts.read(envelope)
    except Refused:
        return
    assert getattr(read, name) == value


@given(st.integers(0), st.integers(1, 255))
def test_no_byte_of_an_envelope_can_be_altered(at: int, by: int) -> None:
    envelope = bytearray(receipts.sign(make(), KEY))
    envelope[at % len(envelope)] ^= by
    with pytest.raises(Refused):
        receipts.verify_signature(bytes(envelope), public(KEY))


def test_a_full_receipt_opens_for_its_auditor_and_its_receipt_alone() -> None:
    sealed = receipts.seal_full(ENTRIES, AUDITOR.public_key().public_bytes_raw(), DIGEST)
    assert receipts.open_full(sealed, AUDITOR, DIGEST) == ENTRIES
    cut, flipped = sealed[:-1], sealed[:40] + bytes([sealed[40] ^ 1]) + sealed[41:]
    wrong = [(sealed, X25519PrivateKey.generate(), DIGEST), (sealed, AUDITOR, bytes(32)), (cut, AUDITOR, DIGEST)]
    for case in [*wrong, (flipped, AUDITOR, DIGEST), (b"", AUDITOR, DIGEST)]:
        with pytest.raises(Refused, match="unopenable"):
            receipts.open_full(*case)


@pytest.mark.parametrize("change", [{"client": "0"}, {"salt": "s"}, {"bytes": True}, {"more": 1}])
def test_entries_of_another_kind_are_malformed(change: dict[str, Any]) -> None:
    sealed = receipts.seal_full([{**ENTRIES[0], **change}], AUDITOR.public_key().public_bytes_raw(), DIGEST)
    with pytest.raises(Refused, match="malformed_full_receipt"):
        receipts.open_full(sealed, AUDITOR, DIGEST)


def test_the_full_receipt_has_the_public_ones_inputs() -> None:
    receipts.check_full(ENTRIES, make(), ROSTER)
    for wrong in (
        ENTRIES[:2],
        [*ENTRIES, entry(1)],
        [{**ENTRIES[0], "client": 1}, *ENTRIES[1:]],
        [{**ENTRIES[0], "salt": bytes(32)}, *ENTRIES[1:]],
        [{**ENTRIES[0], "verdict": "stale"}, *ENTRIES[1:]],
        [{**ENTRIES[0], "client": 3}, *ENTRIES[1:]],
    ):
        with pytest.raises(Refused, match="wrong_inputs"):
            receipts.check_full(wrong, make(), ROSTER)


def test_a_commitment_is_the_digest_of_length_prefixed_parts() -> None:
    parts = (b"privbench input 1", b"salt", b"key", b"digest")
    plain = b"".join(len(p).to_bytes(8, "big") + p for p in parts)
    assert receipts.commitment(*parts[1:]) == hashlib.sha256(plain).digest()
