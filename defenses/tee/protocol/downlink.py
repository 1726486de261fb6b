"""The way down, sealed: a release for those whom the manifest names, and for nobody that stores or carries it.

The model and the aggregator's state are encrypted once each, under keys of their own. The model's is sealed to each
recipient, the state's to clients alone: one of them gives it to an aggregator that has to go on from that state. What
openings and receipts say of the model is a salted digest, with which nobody but a recipient can try models out.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from privbench.defenses.tee.protocol.binding import transcript
from privbench.defenses.tee.protocol.manifest import Refused
from privbench.defenses.tee.protocol.receipts import SUITE

KEY = 32
"""Bytes of a key."""

_INFO, _STATE_INFO = b"privbench release key 1", b"privbench state key 1"
_MODEL, _STATE, _SALT = b"privbench sealed model 1", b"privbench sealed state 1", b"privbench model salt 1"
_DIGEST = b"privbench salted model 1"
_NONCE = bytes(12)  # every derived key encrypts once


@dataclass(frozen=True)
class Release:
    """What leaves the aggregator when a round ends.

    Args:
        model: encrypted; whoever has the key reads it.
        state: encrypted; the aggregator's own, for the one that goes on after it.
        keys: the model's key, sealed to each recipient in the manifest's order.
        state_keys: the state's key, sealed to each client.
    """

    model: bytes
    state: bytes
    keys: tuple[bytes, ...]
    state_keys: tuple[bytes, ...]


def can_seal(key: str) -> bool:
    """Whether something can be sealed to this X25519 public key (hexadecimal): a point of low order is none."""
    try:
        SUITE.encrypt(b"", X25519PublicKey.from_public_bytes(bytes.fromhex(key)), info=b"")
    except ValueError:
        return False
    return True


def new_key() -> bytes:
    """A key for one release's model, or for its state."""
    return secrets.token_bytes(KEY)


def seal(
    model: tuple[bytes, bytes],
    state: tuple[bytes, bytes],
    manifest: bytes,
    round: int,
    recipients: Sequence[bytes],
    clients: int,
) -> Release:
    """A release, sealed.

    Args:
        model, state: a :func:`new_key` of its own, and what it encrypts.
        manifest: digest of the run's manifest.
        round: that it ends.
        recipients: X25519 public keys.
        clients: how many of them, from the first, are clients'.
    """
    info = _info(manifest, round)
    public = [X25519PublicKey.from_public_bytes(key) for key in recipients]
    return Release(
        _cipher(model[0], _MODEL).encrypt(_NONCE, model[1], info),
        _cipher(state[0], _STATE).encrypt(_NONCE, state[1], info),
        tuple(SUITE.encrypt(model[0], key, info=info) for key in public),
        tuple(SUITE.encrypt(state[0], key, info=_info(manifest, round, _STATE_INFO)) for key in public[:clients]),
    )


def open_key(sealed: bytes, private: X25519PrivateKey, manifest: bytes, round: int) -> bytes:
    """The model's key, for one of the release's recipients.

    Raises:
        Refused: ``unopenable``.
    """
    return _open_key(sealed, private, _info(manifest, round), f"the key of round {round}'s release")


def open_state_key(sealed: bytes, private: X25519PrivateKey, manifest: bytes, round: int) -> bytes:
    """The state's key, for one of the clients.

    Raises:
        Refused: ``unopenable``.
    """
    return _open_key(sealed, private, _info(manifest, round, _STATE_INFO), f"the key of round {round}'s state")


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
    return _begun(salt, len(model), model).digest()


def digest_of_file(path: Path, salt: bytes | None) -> bytes:
    """:func:`digest` of the model whose float32 bytes a file holds.

    Raises:
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        hashed = _begun(salt, path.stat().st_size)
        while block := file.read(1 << 20):
            hashed.update(block)
    return hashed.digest()


def _begun(salt: bytes | None, size: int, model: bytes = b"") -> Any:
    before = b"" if salt is None else transcript(_DIGEST, salt) + size.to_bytes(8, "big")
    hashed = hashlib.sha256(before)
    hashed.update(model)
    return hashed


def _open(sealed: bytes, key: bytes, purpose: bytes, manifest: bytes, round: int) -> bytes:
    try:
        return _cipher(key, purpose).decrypt(_NONCE, sealed, _info(manifest, round))
    except (InvalidTag, ValueError):
        raise Refused("unopenable", f"round {round}'s release: altered, or of another key") from None


def _open_key(sealed: bytes, private: X25519PrivateKey, info: bytes, what: str) -> bytes:
    try:
        return SUITE.decrypt(sealed, private, info=info)
    except (InvalidTag, ValueError):
        raise Refused("unopenable", f"{what}: altered, or for somebody else") from None


def _cipher(key: bytes, purpose: bytes) -> AESGCM:
    return AESGCM(hmac.digest(key, purpose, "sha256"))


def _info(manifest: bytes, round: int, domain: bytes = _INFO) -> bytes:
    return transcript(domain, manifest, round.to_bytes(8, "big"))
