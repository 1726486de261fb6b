"""Decision receipts: who signed that this code with this model turned an input into an output and an explanation.

A receipt is the predicate of an in-toto Statement v1 about the model, in a DSSE envelope; its type is a name, and
nothing is fetched from there. Input, output and explanation stand in it as salted commitments: without salts, whoever
has the model could try out inputs until an output's digest fits. Salts and values are the opening, which stays private.
"""

import base64
import hashlib
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privbench.benchmarks.build import require
from privbench.defenses.tee.certificates import Certificate
from privbench.defenses.tee.platforms.platform import Evidence
from privbench.defenses.tee.policy import ANY, Policy
from privbench.defenses.tee.protocol import dsse, statement
from privbench.defenses.tee.protocol.binding import transcript
from privbench.defenses.tee.protocol.manifest import Refused
from privbench.defenses.tee.report import Malformed
from privbench.defenses.tee.verdict import Verdict
from privbench.defenses.tee.verify import verify as verify_report

PREDICATE = "https://privbench.dev/decision/v1"
ROLE = b"decision"
METHODS: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"baseline": 0, "quadrature": "gausslegendre", "steps": 50},
    "saliency": {"absolute": True},
}
"""Explanations and their settings; other settings are another version of the predicate."""

SEEDS = 1 << 53
"""Seeds lie below it: integers that JSON holds exactly."""

SALT = 32
DTYPES = ("<f4", "<f8", "<i8")
_DOMAIN = b"privbench decision key 1"
_VALUE = b"privbench decision value 1"
_HEX = {n: re.compile(f"[0-9a-f]{{{n}}}") for n in (64, 96)}


@dataclass(frozen=True)
class Decision:
    """One decision as its maker states it. Digests are SHA-256, lower-case hexadecimal, but for the measurement.

    Args:
        model: ``state``, digest of names, types, shapes and bytes of all parameters and buffers; ``vector``, digest of
            the flat float32 vector, by which round receipts name a model.
        code: ``privbench``, this suite's measurement (SHA-384); ``factory``, ``module:function``; ``sources``, digests
            of the modules that define the factory and the model's classes.
        environment: versions and settings that change bits.
        seed: of PyTorch's generator, while the model is made and while it computes.
        input, output: a :func:`commitment` to each.
        explanation: ``method`` and its settings (:data:`METHODS`), ``target`` (``predicted``, or a class) and
            ``commitment``; or null.
        key: the signer's Ed25519 public key.
        evidence: ``report`` and ``certificates``, base64, of the guest that holds the key; or null.
        time: ISO 8601 with its offset, by the signer's own clock.
    """

    model: Mapping[str, str]
    code: Mapping[str, Any]
    environment: Mapping[str, Any]
    seed: int
    input: str
    output: str
    explanation: Mapping[str, Any] | None
    key: str
    evidence: Mapping[str, Any] | None
    time: str


@dataclass(frozen=True)
class Value:
    """An array that a receipt commits to.

    Args:
        array: of a type in :data:`DTYPES`.
        salt: 32 bytes.
    """

    array: np.ndarray
    salt: bytes

    @classmethod
    def salted(cls, array: np.ndarray) -> "Value":
        return cls(array, secrets.token_bytes(SALT))

    def commitment(self, role: str) -> str:
        """SHA-256 over role, salt, type, shape and bytes; hides the array as long as the salt is secret."""
        kind, shape = str(self.array.dtype.str), ",".join(map(str, self.array.shape))
        parts = (role.encode(), self.salt, kind.encode(), shape.encode(), self.array.tobytes())
        return hashlib.sha256(transcript(_VALUE, *parts)).hexdigest()

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        data = base64.b64encode(self.array.tobytes()).decode()
        return {"salt": self.salt.hex(), "dtype": self.array.dtype.str, "shape": list(self.array.shape), "data": data}

    @classmethod
    def read(cls, said: Any) -> "Value":
        """The inverse of :meth:`plain`.

        Raises:
            Malformed: anything else.
        """
        if not isinstance(said, dict) or set(said) != {"salt", "dtype", "shape", "data"} or said["dtype"] not in DTYPES:
            raise Malformed("a value has salt, dtype, shape and data")
        try:
            salt, raw = bytes.fromhex(said["salt"]), base64.b64decode(said["data"], validate=True)
            array = np.frombuffer(raw, said["dtype"]).reshape([int(n) for n in said["shape"]])
        except (ValueError, TypeError) as error:
            raise Malformed(f"a value: {error}") from None
        if len(salt) != SALT:
            raise Malformed(f"a salt of {len(salt)} bytes: {SALT}")
        return cls(array, salt)


def sign(decision: Decision, key: Ed25519PrivateKey) -> bytes:
    """The decision's envelope.

    Raises:
        Refused: ``malformed_receipt``, for one that :func:`read` would refuse.
    """
    predicate = dict(decision.__dict__)
    subject = _subject(decision.model.get("vector"))
    try:
        signed = statement.seal(subject, PREDICATE, predicate, key)
    except Malformed as error:
        raise _malformed(str(error)) from None
    read(signed)
    return signed


def read(envelope: bytes) -> tuple[Decision, dsse.Signed]:
    """A decision, and what is signed. The signature is not verified.

    Raises:
        Refused: ``malformed_receipt``. Nothing else is raised, whatever the bytes.
    """
    try:
        subject, found, signed = statement.read(envelope, PREDICATE)
    except Malformed as error:
        raise _malformed(str(error)) from None
    if not isinstance(found, dict) or set(found) != set(_FIELDS):
        raise _malformed("fields of the decision")
    if wrong := [name for name, sound in _FIELDS.items() if not sound(found[name])]:
        raise _malformed(f"the value of {', '.join(wrong)}")
    if subject != _subject(found["model"]["vector"]):
        raise _malformed("the subject is not the model")
    return Decision(**found), signed


def verify(envelope: bytes, public_key: bytes | None = None) -> Decision:
    """The decision, if the key that it names signed it.

    Args:
        public_key: the signer that you expect; None takes the receipt's own word: it is then whole, whosever it is.

    Raises:
        Refused: ``malformed_receipt``, ``unsigned_receipt``, or ``foreign_key`` for another signer than expected.
    """
    decision, signed = read(envelope)
    if not signed.signed_by(bytes.fromhex(decision.key)):
        raise Refused("unsigned_receipt", f"the signature is not by the key it names, {decision.key}")
    if public_key is not None and public_key.hex() != decision.key:
        raise Refused("foreign_key", f"signed by {decision.key}, not by {public_key.hex()}")
    return decision


def report_data(public_key: bytes) -> bytes:
    """The 64 bytes of REPORT_DATA by which a guest says that it holds a key: SHA-512 over domain, role and key."""
    return hashlib.sha512(transcript(_DOMAIN, ROLE, public_key)).digest()


def attested(
    decision: Decision, fields: Mapping[str, Any], at: datetime, root: Certificate | None = None
) -> Verdict | None:
    """The verdict on a decision's evidence; None where it has none, and its assurance is ``none``.

    Args:
        fields: of a :class:`~privbench.defenses.tee.policy.Policy`, without ``report_data``: it binds the signer's key.
        at: when certificates have to be valid.
        root: trust this certificate's key instead of AMD's.

    Raises:
        ConfigError: a policy that isn't one, or that demands other report data.
    """
    for name in ("report_data", "nonce"):
        right = "left out: it follows from the signer's key"
        require(fields.get(name) in (None, ANY), f"policy.{name}", "given", right)
    policy = Policy(**{**fields, "report_data": report_data(bytes.fromhex(decision.key)), "nonce": None})
    if decision.evidence is None:
        return None
    certificates = [base64.b64decode(c) for c in decision.evidence["certificates"]]
    return verify_report(base64.b64decode(decision.evidence["report"]), certificates, policy, at, root)


def plain_evidence(evidence: Evidence) -> dict[str, Any]:
    """Evidence for JSON."""
    certificates = [base64.b64encode(c).decode() for c in evidence.certificates]
    return {"report": base64.b64encode(evidence.report).decode(), "certificates": certificates}


def _subject(vector: Any) -> list[Any]:
    return [{"name": "model", "digest": {"sha256": vector}}]


def _malformed(reason: str) -> Refused:
    return Refused("malformed_receipt", reason)


def _is_hex(value: Any, digits: int = 64) -> bool:
    return isinstance(value, str) and bool(_HEX[digits].fullmatch(value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_base64(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(base64.b64decode(value, validate=True))
    except ValueError:
        return False


def _is_code(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"privbench", "factory", "sources"}:
        return False
    sources = value["sources"]
    fits = isinstance(sources, dict) and all(map(_is_hex, sources.values()))
    return fits and _is_hex(value["privbench"], 96) and _is_text(value["factory"])


def _is_explanation(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or not _is_hex(value.get("commitment")):
        return False
    method, target = value.get("method"), value.get("target")
    own = {k: v for k, v in value.items() if k not in ("method", "target", "commitment")}
    known = isinstance(method, str) and own == METHODS.get(method)
    return known and (target == "predicted" or (type(target) is int and 0 <= target < SEEDS))


def _is_evidence(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or set(value) != {"report", "certificates"}:
        return False
    listed = value["certificates"]
    return _is_base64(value["report"]) and isinstance(listed, list) and all(map(_is_base64, listed))


def _is_time(value: Any) -> bool:
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "model": lambda v: isinstance(v, dict) and set(v) == {"state", "vector"} and all(map(_is_hex, v.values())),
    "code": _is_code,
    "environment": lambda v: isinstance(v, dict) and all(type(x) in (str, int, bool) for x in v.values()),
    "seed": lambda v: type(v) is int and 0 <= v < SEEDS,
    "input": _is_hex,
    "output": _is_hex,
    "explanation": _is_explanation,
    "key": _is_hex,
    "evidence": _is_evidence,
    "time": _is_time,
}
