"""The way down, sealed: a release for those whom the manifest names, and for nobody that stores or carries it.

Model and state are encrypted once, under keys derived from this release's own; that one is sealed to each recipient.
What openings and receipts say of the model is a salted digest, with which nobody but a recipient can try models out.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from privbench.defenses.tee.protocol.binding import transcript
from privbench.defenses.tee.protocol.manifest import Refused
from privbench.defenses.tee.protocol.sealing import SUITE

KEY = 32
"""Bytes of a release's key."""

_INFO = b"privbench release key 1"
_MODEL, _STATE, _SALT = b"privbench sealed model 1", b"privbench sealed state 1", b"privbench model salt 1"
_DIGEST = b"privbench salted model 1"
_NONCE = bytes(12)  # every derived key encrypts once


@dataclass(frozen=True)
class Release:
    """What leaves the aggregator when a round ends.

    Args:
        model: encrypted; whoever has the key reads it.
        state: encrypted; the aggregator's own, for the one that goes on after it.
        keys: the release's key, sealed to each recipient in the manifest's order.
    """

    model: bytes
    state: bytes
    keys: tuple[bytes, ...]


def new_key() -> bytes:
    """The key of one release."""
    return secrets.token_bytes(KEY)


def seal(key: bytes, model: bytes, state: bytes, manifest: bytes, round: int, recipients: Sequence[bytes]) -> Release:
    """A release, sealed.

    Args:
        key: :func:`new_key`'s, used for no other release.
        model, state: in the clear.
        manifest: digest of the run's manifest.
        round: that it ends.
        recipients: X25519 public keys.
    """
    info = _info(manifest, round)
    sealed = (SUITE.encrypt(key, X25519PublicKey.from_public_bytes(k), info=info) for k in recipients)
    return Release(
        _cipher(key, _MODEL).encrypt(_NONCE, model, info),
        _cipher(key, _STATE).encrypt(_NONCE, state, info),
        tuple(sealed),
    )


def open_key(sealed: bytes, private: X25519PrivateKey, manifest: bytes, round: int) -> bytes:
    """The release's key, for one of its recipients.

    Raises:
        Refused: ``unopenable``.
    """
    try:
        return SUITE.decrypt(sealed, private, info=_info(manifest, round))
    except (InvalidTag, ValueError):
        raise Refused("unopenable", f"the key of round {round}'s release: altered, or for somebody else") from None


def open_model(sealed: bytes, key: bytes, manifest: bytes, round: int) -> bytes:
    """The model inside a release.

    Raises:
        Refused: ``unopenable``.
    """
    return _open(sealed, key, _MODEL, manifest, round)


def open_state(sealed: bytes, key: bytes, manifest: bytes, round: int) -> bytes:
    """The aggregator's state inside a release.

    Raises:
        Refused: ``unopenable``.
    """
    return _open(sealed, key, _STATE, manifest, round)


def salt(key: bytes) -> bytes:
    """Of the digest of the model that ``key`` opens."""
    return hmac.digest(key, _SALT, "sha256")


def digest(model: bytes, salt: bytes | None) -> bytes:
    """What openings and receipts say of a model's float32 bytes: their SHA-256, or, with a salt, that of domain, salt
    and bytes, each length-prefixed."""
    return hashlib.sha256(model if salt is None else transcript(_DIGEST, salt, model)).digest()


def _open(sealed: bytes, key: bytes, purpose: bytes, manifest: bytes, round: int) -> bytes:
    try:
        return _cipher(key, purpose).decrypt(_NONCE, sealed, _info(manifest, round))
    except (InvalidTag, ValueError):
        raise Refused("unopenable", f"round {round}'s release: altered, or of another key") from None


def _cipher(key: bytes, purpose: bytes) -> AESGCM:
    return AESGCM(hmac.digest(key, purpose, "sha256"))


def _info(manifest: bytes, round: int) -> bytes:
    return transcript(_INFO, manifest, round.to_bytes(8, "big"))
