"""Round receipts: what the attested aggregator signs when a round ends.

A receipt is the predicate of an in-toto Statement v1 about the released model, in a DSSE envelope. The predicate's type
is a name: nothing lies at that address, and nothing is fetched. Inputs stand in it as salted commitments; who sent
what is in the full receipt, sealed to an auditor.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from privbench.benchmarks.shares import cohort_size
from privbench.defenses.tee.protocol import dsse, statement
from privbench.defenses.tee.protocol.binding import transcript
from privbench.defenses.tee.protocol.manifest import Manifest, Refused
from privbench.defenses.tee.report import Malformed
from privbench.defenses.tee.wire import pack, unpack

PREDICATE = "https://privbench.dev/round-receipt/v1"
EVIDENCE = ("signed_sha256", "kem_key", "signing_key", "nonce_root")
ACCEPTED = "accepted"

SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_128_GCM)
_INPUT = b"privbench input 1"
_FULL = b"privbench full receipt 1"
_ENTRY = {"client": int, "salt": bytes, "sealed_sha256": bytes, "bytes": int, "verdict": str, "reason": str}
_HEX = re.compile(r"[0-9a-f]{64}")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)", re.ASCII)


class _Plan(Protocol):
    """What a receipt needs of a privacy plan; ``accounting`` itself imports torch."""

    @property
    def unit(self) -> str: ...
    @property
    def clip(self) -> float: ...
    @property
    def noise_multiplier(self) -> float: ...


@dataclass(frozen=True)
class Receipt:
    """One round as its aggregator states it. Digests are SHA-256 in lower-case hexadecimal.

    Args:
        run: the manifest's.
        manifest: digest of the run manifest.
        round, attempt: from 1.
        previous: digest of the last round's receipt (its payload); 64 zeros before the first.
        evidence: ``signed_sha256``, digest of bytes 0x000 to 0x29F of the report, and what REPORT_DATA binds:
            ``kem_key``, ``signing_key``, ``nonce_root``.
        start_model, model: digests of the float32 bytes of the model before, and of the one that was released; under
            a sealed downlink salted, so that recipients alone can compare.
        state: digest of the server's state after the round.
        invited, accepted: numbers of clients.
        refused: number of messages by the name of the refusal.
        inputs: a :func:`commitment` to each message, sorted.
        rule: the aggregation's ``_target_``.
        clip, noise_multiplier: of the aggregation and of central noise; null where there is none.
        sampling, sampling_rate: how the cohort is drawn.
        delta: of the plan, or null.
        statements: the plan's after this round, one an adversary; an ``epsilon`` of null is infinite.
        time: RFC 3339, by the aggregator's own clock.
    """

    run: str
    manifest: str
    round: int
    attempt: int
    previous: str
    evidence: Mapping[str, str]
    start_model: str
    model: str
    state: str
    invited: int
    accepted: int
    refused: Mapping[str, int]
    inputs: Sequence[str]
    rule: str
    clip: float | None
    noise_multiplier: float | None
    sampling: str
    sampling_rate: float | None
    delta: float | None
    statements: Sequence[Mapping[str, Any]]
    time: str


def sign(receipt: Receipt, private_key: Ed25519PrivateKey) -> bytes:
    """The receipt's envelope, signed.

    Raises:
        Refused: ``malformed_receipt``, for one that :func:`read` would refuse.
    """
    predicate = dict(receipt.__dict__)
    subject = _subject(predicate.pop("model"))
    try:
        signed = statement.seal(subject, PREDICATE, predicate, private_key)
    except Malformed as error:
        raise _malformed(str(error)) from None
    read(signed)
    return signed


def read(envelope: bytes) -> tuple[Receipt, bytes]:
    """A receipt and its payload. The signature is not verified.

    Raises:
        Refused: ``malformed_receipt``: a field that is missing, unknown or of another kind, or a spelling that is not
            the canonical one. Nothing else is raised, whatever the bytes.
    """
    receipt, signed = _read(envelope)
    return receipt, signed.payload


def verify_signature(envelope: bytes, public_key: bytes) -> Receipt:
    """The receipt, if ``public_key`` (Ed25519, 32 bytes) signed it.

    Raises:
        Refused: ``malformed_receipt`` or ``unsigned_receipt``.
    """
    receipt, signed = _read(envelope)
    if not signed.signed_by(public_key):
        raise Refused("unsigned_receipt", f"round {receipt.round}'s receipt is not signed by {public_key.hex()}")
    return receipt


def digest(envelope: bytes) -> bytes:
    """A receipt's identity: SHA-256 of its payload.

    Raises:
        Refused: ``malformed_receipt``.
    """
    return hashlib.sha256(read(envelope)[1]).digest()


def commitment(salt: bytes, client_key: bytes, sealed_sha256: bytes) -> bytes:
    """What a public receipt says of one message: it hides client and message, and holds the aggregator to both."""
    return hashlib.sha256(transcript(_INPUT, salt, client_key, sealed_sha256)).digest()


def parameters(manifest: Manifest, plan: _Plan | None) -> dict[str, Any]:
    """The fields of a receipt that follow from the manifest alone; ``plan`` is its privacy plan, bound."""
    plan = plan if plan and plan.unit == "client" and central_noise(manifest) else None
    return {
        "rule": manifest.aggregation["_target_"],
        "clip": plan.clip if plan else manifest.aggregation.get("clip"),
        "noise_multiplier": plan.noise_multiplier if plan else None,
        "sampling": manifest.facts["sampling"],
        "sampling_rate": _rate(manifest.facts),
        "delta": manifest.privacy["delta"] if manifest.privacy else None,
    }


def _rate(facts: Mapping[str, Any]) -> float:
    """As :attr:`Facts.rate <privbench.defenses.accounting.guarantee.Facts.rate>`, without its imports."""
    share, clients = facts["participation"], facts["clients"]
    return share if facts["sampling"] == "poisson" else cohort_size(share, clients) / clients


def central_noise(manifest: Manifest) -> bool:
    """Whether a client-level plan counts on the aggregator's noise, not on the clients' own."""
    return manifest.privacy is not None and manifest.privacy.get("noise", "central") == "central"


def seal_full(entries: Sequence[Mapping[str, Any]], auditor_public_key: bytes, receipt_digest: bytes) -> bytes:
    """The full receipt, for one auditor.

    Args:
        entries: of each message ``client`` (-1 for nobody's), ``salt``, ``sealed_sha256``, ``bytes``, ``verdict``
            (``accepted``, or the name of the refusal) and ``reason``.
        auditor_public_key: X25519, 32 bytes.
        receipt_digest: of the public receipt; it opens with no other.
    """
    key = X25519PublicKey.from_public_bytes(auditor_public_key)
    return SUITE.encrypt(pack({"entries": [dict(e) for e in entries]}), key, info=transcript(_FULL, receipt_digest))


def open_full(sealed: bytes, auditor_key: X25519PrivateKey, receipt_digest: bytes) -> list[dict[str, Any]]:
    """The inverse of :func:`seal_full`.

    Raises:
        Refused: ``unopenable`` or ``malformed_full_receipt``.
    """
    try:
        payload = SUITE.decrypt(sealed, auditor_key, info=transcript(_FULL, receipt_digest))
    except (InvalidTag, ValueError):
        raise Refused("unopenable", "altered, or sealed to another auditor or for another receipt") from None
    try:
        found = unpack(payload)
    except Malformed as error:
        raise Refused("malformed_full_receipt", str(error)) from None
    entries = found.get("entries")
    if set(found) != {"entries"} or not isinstance(entries, list) or not all(map(_is_entry, entries)):
        raise Refused("malformed_full_receipt", "fields of the entries")
    return entries


def check_full(entries: Sequence[Mapping[str, Any]], receipt: Receipt, roster: Sequence[bytes]) -> None:
    """Refuse (``wrong_inputs``) entries that aren't exactly those that the public receipt commits to and counts.

    Args:
        roster: the clients' keys by number.
    """
    if strangers := [e["client"] for e in entries if not -1 <= e["client"] < len(roster)]:
        raise Refused("wrong_inputs", f"clients {strangers[:5]} of a roster of {len(roster)}")
    keys = (roster[e["client"]] if e["client"] >= 0 else b"" for e in entries)
    made = [commitment(e["salt"], key, e["sealed_sha256"]).hex() for e, key in zip(entries, keys, strict=True)]
    if sorted(made) != list(receipt.inputs):
        raise Refused("wrong_inputs", "their commitments are not the public receipt's")
    counts = Counter(e["verdict"] for e in entries)
    if counts.pop(ACCEPTED, 0) != receipt.accepted or counts != Counter(receipt.refused):
        raise Refused("wrong_inputs", "accepted and refused are not counted as in the public receipt")


def _read(envelope: bytes) -> tuple[Receipt, dsse.Signed]:
    try:
        subject, predicate, signed = statement.read(envelope, PREDICATE)
    except Malformed as error:
        raise _malformed(str(error)) from None
    if not isinstance(predicate, dict) or "model" in predicate:
        raise _malformed("the predicate")
    try:
        found = {**predicate, "model": subject[0]["digest"]["sha256"]}
    except (LookupError, TypeError):
        raise _malformed("the subject") from None
    if odd := sorted(set(found) ^ set(_FIELDS)):
        raise _malformed(f"unknown or missing fields: {', '.join(odd)[:200]}")
    if wrong := [name for name, sound in _FIELDS.items() if not sound(found[name])]:
        raise _malformed(f"the value of {', '.join(wrong)}")
    if subject != _subject(found["model"]):
        raise _malformed("the subject is not one model with its digest")
    return Receipt(**found), signed


def _subject(model: str) -> list[Any]:
    return [{"name": "model", "digest": {"sha256": model}}]


def _malformed(reason: str) -> Refused:
    return Refused("malformed_receipt", reason)


def _is_hex(value: Any) -> bool:
    return isinstance(value, str) and bool(_HEX.fullmatch(value))


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or set(entry) != set(_ENTRY):
        return False
    return all(type(entry[name]) is kind for name, kind in _ENTRY.items())


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_time(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(_RFC3339.fullmatch(value) and datetime.fromisoformat(value))
    except ValueError:
        return False


def _is_statement(value: Any) -> bool:
    if not isinstance(value, dict) or not {"unit", "adversary", "epsilon", "delta"} <= set(value):
        return False
    epsilon = value["epsilon"] is None or (_number(value["epsilon"]) and value["epsilon"] >= 0)
    return epsilon and _text(value["unit"]) and _text(value["adversary"]) and _number(value["delta"])


def _is_list(sound: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(sound, value))


_FIELDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("manifest", "previous", "start_model", "model", "state"), _is_hex),
    **dict.fromkeys(("run", "rule", "sampling"), _text),
    **dict.fromkeys(("round", "attempt"), lambda v: type(v) is int and v > 0),
    **dict.fromkeys(("invited", "accepted"), lambda v: type(v) is int and v >= 0),
    **dict.fromkeys(("clip", "noise_multiplier", "sampling_rate", "delta"), lambda v: v is None or _number(v)),
    "evidence": lambda v: isinstance(v, dict) and set(v) == set(EVIDENCE) and all(map(_is_hex, v.values())),
    "refused": lambda v: isinstance(v, dict) and all(type(n) is int and n > 0 for n in v.values()),
    "inputs": lambda v: _is_list(_is_hex)(v) and v == sorted(set(v)),
    "statements": _is_list(_is_statement),
    "time": _is_time,
}
