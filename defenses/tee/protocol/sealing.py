"""An update's way to the attested key: sealed with HPKE (RFC 9180), bound to its place, signed by its client.

HPKE single shot: X25519, HKDF-SHA256, AES-128-GCM. ``cryptography`` offers no associated data, so all that a message
is bound to stands in ``info``; the signature names the same, so that a refusal can say what was wrong.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from privbench.benchmarks.federation.update import Layout, Update
from privbench.defenses.tee.protocol.binding import transcript
from privbench.defenses.tee.protocol.manifest import Refused, check
from privbench.defenses.tee.protocol.opening import Opening
from privbench.defenses.tee.report import Malformed
from privbench.defenses.tee.wire import pack, unpack

SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_128_GCM)
_INFO = b"privbench sealed update 1"
_SIGNED = b"privbench signed message 1"


@dataclass(frozen=True)
class Place:
    """Where a message belongs. Whoever moves it to another place can't make it open there.

    Args:
        manifest: digest of the run manifest, 32 bytes.
        round: from 1.
        attempt: from 1; 0 where a client is asked for a key.
        client: number in the roster.
        start_model: SHA-256 of the model that training started from, salted where it was released sealed.
        previous: digest of the last round's receipt.
        evidence: SHA-256 of the report's signed bytes. Its signature is malleable and stays out.
    """

    manifest: bytes
    round: int
    attempt: int
    client: int
    start_model: bytes
    previous: bytes
    evidence: bytes

    def parts(self) -> tuple[bytes, ...]:
        numbers = (n.to_bytes(8, "big") for n in (self.round, self.attempt, self.client))
        return (self.manifest, *numbers, self.start_model, self.previous, self.evidence)


def place(opening: Opening, client: int) -> Place:
    """Where a client's message in the attempt of ``opening`` belongs."""
    o = opening
    return Place(o.manifest, o.round, o.attempt, client, o.start_model, o.previous, o.evidence)


def seal(update: Update, place: Place, kem_key: bytes, signing: Ed25519PrivateKey) -> bytes:
    """The message of one client.

    Args:
        update: what only the holder of the KEM key will read.
        kem_key: 32 bytes, attested.
        signing: the client's own key.
    """
    return sign(enclose(encode(update), place, kem_key), place, signing)


def enclose(payload: bytes, place: Place, kem_key: bytes) -> bytes:
    """``payload`` for the holder of the KEM key alone, in this place alone."""
    return SUITE.encrypt(payload, X25519PublicKey.from_public_bytes(kem_key), info=_info(place))


def sign(sealed: bytes, place: Place, signing: Ed25519PrivateKey) -> bytes:
    """The message around sealed bytes."""
    signature = signing.sign(_signed(place, sealed))
    return pack({**place.__dict__, "sealed": sealed, "signature": signature})


def attested(update: bytes, proof: Mapping[str, Any]) -> bytes:
    """The payload of an attested client: its update's bytes and the fields of its proof."""
    return pack({"update": update, "proof": dict(proof)})


def split(payload: bytes) -> tuple[bytes, Any]:
    """The inverse of :func:`attested`.

    Raises:
        Refused: ``unattested``, if no proof came with the update.
    """
    try:
        found = unpack(payload)
    except Malformed as error:
        raise Refused("malformed_update", str(error)) from None
    if set(found) != {"update", "proof"} or type(found["update"]) is not bytes:
        raise Refused("unattested", "no evidence of the client's code came with the update")
    return found["update"], found["proof"]


def read(message: bytes) -> tuple[Place, bytes, bytes]:
    """A message's place, sealed bytes and signature; nothing is checked but their kinds.

    Raises:
        Refused: ``malformed``.
    """
    try:
        found = unpack(message)
    except Malformed as error:
        raise Refused("malformed", str(error)) from None
    kinds: dict[str, type] = dict.fromkeys(
        ("manifest", "start_model", "previous", "evidence", "sealed", "signature"), bytes
    )
    kinds |= dict.fromkeys(("round", "attempt", "client"), int)
    wrong = [name for name, kind in kinds.items() if type(found.get(name)) is not kind]
    if wrong or set(found) - set(kinds):
        raise Refused("malformed", f"fields: {', '.join(wrong or sorted(set(found) - set(kinds)))}")
    if not all(0 <= found[n] < 2**63 for n in ("round", "attempt", "client")):
        raise Refused("malformed", "a number out of range")
    sealed, signature = found.pop("sealed"), found.pop("signature")
    return Place(**found), sealed, signature


def check_signature(place: Place, sealed: bytes, signature: bytes, key: bytes) -> None:
    """Refuse (``unsigned``) what the client whose ``key`` it is didn't send from this place."""
    check(key, signature, _signed(place, sealed), "unsigned", f"client {place.client}")


def open_(sealed: bytes, place: Place, kem_key: X25519PrivateKey) -> bytes:
    """The payload inside.

    Raises:
        Refused: ``unopenable`` (altered, cut, or sealed for another place or key).
    """
    try:
        return SUITE.decrypt(sealed, kem_key, info=_info(place))
    except (InvalidTag, ValueError):
        reason = f"client {place.client}'s message doesn't open: altered, cut, or sealed for another place or key"
        raise Refused("unopenable", reason) from None


def decode(encoded: bytes, client: int, layout: Layout) -> Update:
    """The update that :func:`encode` wrote.

    Raises:
        Refused: ``malformed_update``.
    """
    try:
        return _decode(encoded, layout)
    except (Malformed, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise Refused("malformed_update", f"client {client}: {error}") from None


def model_digest(model: torch.Tensor) -> bytes:
    """SHA-256 of a model's float32 bytes, little-endian."""
    return hashlib.sha256(floats(model)).digest()


def floats(vector: torch.Tensor) -> bytes:
    """A vector's float32 bytes, little-endian."""
    return vector.detach().to(torch.float32).contiguous().numpy().astype("<f4", copy=False).tobytes()


def vector(raw: bytes) -> torch.Tensor:
    """The inverse of :func:`floats`: a new vector."""
    return torch.from_numpy(np.frombuffer(raw, "<f4").astype(np.float32))


def _info(place: Place) -> bytes:
    return transcript(_INFO, *place.parts())


def _signed(place: Place, sealed: bytes) -> bytes:
    return transcript(_SIGNED, *place.parts(), hashlib.sha256(sealed).digest())


def encode(update: Update) -> bytes:
    """An update's bytes; those of equal updates are equal."""
    extras = {name: {"shape": list(t.shape), "data": floats(t)} for name, t in update.extras.items()}
    return pack({"kind": update.kind, "records": update.records, "extras": extras, "vector": floats(update.vector)})


def _decode(payload: bytes, layout: Layout) -> Update:
    found: dict[str, Any] = unpack(payload)
    if set(found) != {"kind", "records", "extras", "vector"} or found["kind"] not in ("gradient", "update"):
        raise Malformed("fields of the update")
    if type(found["records"]) is not int or found["records"] < 0:
        raise Malformed(f"records {found['records']!r}")
    weights = vector(found["vector"])
    if len(weights) != layout.size:
        raise Malformed(f"a vector of {len(weights)} entries, the model has {layout.size}")
    extras = {str(name): vector(e["data"]).reshape(e["shape"]) for name, e in found["extras"].items()}
    return Update(weights, layout, found["kind"], found["records"], extras)
