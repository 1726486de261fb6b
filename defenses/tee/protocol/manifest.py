"""The run manifest: what clients, aggregator and auditors agree on before the first round.

Its bytes are canonical JSON (RFC 8785)."""

import hashlib
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privbench.defenses.tee.protocol.binding import transcript

SCHEMA = 1
_COUNTERSIGN = b"privbench countersigned manifest 1"
_ENROL = b"privbench roster 1"
_OPTIONAL = ("client_measurements", "training", "recipients")
"""Fields that are left out of a manifest where they are empty."""


class Refused(RuntimeError):
    """A party refuses what another sent.

    Args:
        name: what is wrong, of a fixed set of words: ``stale``, ``replayed``, ``foreign``, ``wrong_measurement``, ...
        reason: in words, with the values.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class Manifest:
    """Every field is JSON; digests, keys and signatures are in hexadecimal.

    Args:
        run: the run's name.
        salt: 32 bytes, which make the manifest of a run started twice two manifests.
        platform: ``sev_snp`` or ``software``.
        measurements: launch digests of the aggregator that clients accept.
        model: SHA-256 of the initial model's float32 bytes, little-endian.
        layout: names, shapes and number of parameters of the model's vector.
        schema: SHA-256 of the task's canonical description.
        aggregation, release, server, privacy: the pipeline's components, ``_target_`` and fields; privacy may be null.
        facts: what of the federation a guarantee depends on.
        weighting, share, learning_rate: how clients' vectors are to be read.
        seed: of the run; names the streams of sampling and of seeded noise.
        least_cohort: fewer updates than this, and nothing is released.
        greatest_age: seconds after which a client takes evidence for old.
        roster: the clients' public keys (Ed25519), in the order of their numbers.
        authority: the enrolment authority's public key, and ``enrolment`` its signature over roster and recipients.
        auditors: public keys (X25519) that full receipts are sealed to.
        client_measurements: launch digests of the clients' guest; empty where clients aren't attested.
        training: model, inputs, task, local work and mechanism that attested clients train with; else null.
        recipients: public keys (X25519) that releases are sealed to: the clients', in the order of their numbers, then
            those of who receives models and doesn't train. Empty for a plain downlink.
    """

    run: str
    salt: str
    platform: str
    measurements: tuple[str, ...]
    model: str
    layout: Mapping[str, Any]
    schema: str
    aggregation: Mapping[str, Any]
    release: Mapping[str, Any]
    server: Mapping[str, Any]
    privacy: Mapping[str, Any] | None
    facts: Mapping[str, Any]
    weighting: str
    share: str
    learning_rate: float
    seed: int
    least_cohort: int
    greatest_age: float
    roster: tuple[str, ...]
    authority: str
    enrolment: str
    auditors: tuple[str, ...] = ()
    version: int = SCHEMA
    client_measurements: tuple[str, ...] = ()
    training: Mapping[str, Any] | None = None
    recipients: tuple[str, ...] = ()

    def canonical(self) -> bytes:
        """The bytes that are hashed and signed. What a run doesn't use isn't in them."""
        plain = _plain(asdict(self))
        return rfc8785.dumps({k: v for k, v in plain.items() if v or k not in _OPTIONAL})

    @property
    def digest(self) -> bytes:
        """SHA-256 of :meth:`canonical`, 32 bytes: HOST_DATA, where the host sets it."""
        return hashlib.sha256(self.canonical()).digest()

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> "Manifest":
        """From parsed JSON.

        Raises:
            Refused: ``malformed_manifest``, for a field that is missing, unknown or of another kind.
        """
        known = {f.name for f in fields(cls)}
        missing = {f.name for f in fields(cls)} - {"auditors", "version", *_OPTIONAL} - set(raw)
        if set(raw) - known or missing:
            wrong = sorted(set(raw) - known) or sorted(missing)
            raise Refused("malformed_manifest", f"unknown or missing fields: {', '.join(map(str, wrong))}")
        if raw.get("version", SCHEMA) != SCHEMA:
            raise Refused("malformed_manifest", f"version {raw['version']!r}: {SCHEMA} is known")
        given = [n for n in ("measurements", "roster", "auditors", "client_measurements", "recipients") if n in raw]
        lists = {n: tuple(raw[n]) for n in given if isinstance(raw[n], list)}
        if not {"measurements", "roster", *given} <= set(lists):
            raise Refused("malformed_manifest", "measurements, roster and auditors: lists")
        made = cls(**{**raw, **lists})
        texts = (made.run, made.salt, made.platform, made.model, made.schema, made.authority, made.enrolment)
        texts += (*made.roster, *made.measurements, *made.auditors, *made.client_measurements, *made.recipients)
        sound = all(isinstance(t, str) for t in texts)
        sound &= made.training is None or isinstance(made.training, Mapping)
        sound &= bool(made.training) == bool(made.client_measurements)
        numbers = isinstance(made.seed, int) and isinstance(made.least_cohort, int)
        numbers &= all(_is_real(n) for n in (made.greatest_age, made.learning_rate))
        sound &= made.share in ("gradient", "update") and made.weighting in ("records", "equal")
        if not sound or not numbers or not all(isinstance(made.__dict__[n], Mapping) for n in ("layout", "facts")):
            raise Refused("malformed_manifest", "a field of the wrong kind")
        return made

    def key(self, client: int) -> bytes:
        """The public key of a client.

        Raises:
            Refused: ``unknown_client``.
        """
        if not 0 <= client < len(self.roster):
            raise Refused("unknown_client", f"client {client} of a roster of {len(self.roster)}")
        return bytes.fromhex(self.roster[client])

    def check_enrolment(self) -> None:
        """Refuse a roster that the enrolment authority didn't sign (``unsigned_roster``)."""
        if len(set(self.roster)) != len(self.roster):
            raise Refused("unsigned_roster", "a key stands in it twice")
        if self.recipients and len(self.recipients) < len(self.roster):
            raise Refused("unsigned_roster", f"{len(self.recipients)} recipients' keys for {len(self.roster)} clients")
        signed = roster_bytes(self.run, self.salt, self.roster, self.recipients)
        check(bytes.fromhex(self.authority), bytes.fromhex(self.enrolment), signed, "unsigned_roster", "the roster")


def new_salt() -> str:
    """32 random bytes in hexadecimal."""
    return secrets.token_hex(32)


def roster_bytes(run: str, salt: str, roster: Sequence[str], recipients: Sequence[str] = ()) -> bytes:
    """What the enrolment authority signs."""
    keys = [bytes.fromhex(k) for k in roster]
    # With their number before them: no client's key can be taken for a recipient's.
    models = [len(keys).to_bytes(8, "big"), *(bytes.fromhex(k) for k in recipients)] if recipients else []
    return transcript(_ENROL, run.encode(), bytes.fromhex(salt), *keys, *models)


def countersigned(manifest: bytes) -> bytes:
    """What each client signs of a manifest with this digest."""
    return transcript(_COUNTERSIGN, manifest)


def check_countersignatures(manifest: Manifest, signatures: Sequence[bytes]) -> None:
    """Refuse a manifest that not every client of the roster has signed (``not_countersigned``)."""
    if len(signatures) != len(manifest.roster):
        raise Refused("not_countersigned", f"{len(signatures)} signatures of {len(manifest.roster)} clients")
    message = countersigned(manifest.digest)
    for client, signature in enumerate(signatures):
        check(manifest.key(client), signature, message, "not_countersigned", f"client {client}")


def check(key: bytes, signature: bytes, message: bytes, name: str, who: str) -> None:
    """Refuse, as ``name``, a signature that ``key`` (Ed25519) didn't make over ``message``."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise Refused(name, f"the signature of {who} doesn't hold") from None


def public(key: Ed25519PrivateKey) -> bytes:
    """32 bytes."""
    return key.public_key().public_bytes_raw()


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
