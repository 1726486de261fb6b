"""Key agreement between two clients (X25519), and messages from one to the other that the server carries."""

from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privbench.defenses.channel.channel import RoundRefused
from privbench.defenses.secagg.shares import SIZE

OVERHEAD = 16
"""Bytes that sealing adds."""


def public(private: int) -> bytes:
    """The public key, 32 bytes, of a private one in the shares' field."""
    return _private(private).public_key().public_bytes_raw()


def agreed(private: int, others: Mapping[int, bytes]) -> dict[int, bytes]:
    """32 bytes that a private key's owner has in common with each of ``others``, whose public keys they are.

    Raises:
        RoundRefused: for a public key of low order, with which everybody would know them.
    """
    own = _private(private)
    try:
        return {client: own.exchange(X25519PublicKey.from_public_bytes(key)) for client, key in others.items()}
    except ValueError:
        raise RoundRefused("public_key: one that nothing can be agreed on with") from None


def derived(secret: bytes, purpose: str) -> bytes:
    """16 bytes from a secret, different ones for each purpose (HKDF-SHA256)."""
    return HKDF(SHA256(), 16, None, f"privbench secagg {purpose}".encode()).derive(secret)


def seal(key: bytes, message: bytes) -> bytes:
    """Encrypted and authenticated. The key serves for this message alone, so that its nonce can be zero."""
    return AESGCM(key).encrypt(bytes(12), message, None)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """The inverse of :func:`seal`.

    Raises:
        RoundRefused: if it was altered, or made under another key.
    """
    try:
        return AESGCM(key).decrypt(bytes(12), sealed, None)
    except InvalidTag:
        raise RoundRefused("altered: shares that their sender did not seal like this") from None


def _private(value: int) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(value.to_bytes(SIZE, "little"))
