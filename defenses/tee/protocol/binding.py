"""What REPORT_DATA binds: role, manifest, keys, and a tree of the clients' nonces, so that one report serves them all.

Every hash has a domain of its own and length-prefixed parts, so that no two messages of different meaning are equal.
"""

import hashlib
from collections.abc import Sequence

AGGREGATOR = b"aggregator"
NONCE = 32
"""Bytes of a client's nonce."""

ABSENT = bytes(NONCE)
"""Stands in the tree for a client of the roster that didn't join."""

_DOMAIN = b"privbench report data 1"


def transcript(*parts: bytes) -> bytes:
    """Parts with their lengths before them, 8 bytes each, big-endian."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def report_data(role: bytes, manifest: bytes, kem_key: bytes, signing_key: bytes, root: bytes) -> bytes:
    """The 64 bytes of REPORT_DATA: SHA-512 over domain, role, manifest digest, KEM key, signing key and nonce root."""
    return hashlib.sha512(transcript(_DOMAIN, role, manifest, kem_key, signing_key, root)).digest()


def is_nonce(value: object) -> bool:
    """Whether it has the kind and the length of one."""
    return isinstance(value, bytes) and len(value) == NONCE


def leaf(key: bytes, nonce: bytes) -> bytes:
    """``H(0x00, client key, nonce)``, 32 bytes each."""
    if len(key) != 32 or len(nonce) != NONCE:
        raise ValueError(f"a key of {len(key)} and a nonce of {len(nonce)} bytes: 32 each")
    return hashlib.sha256(b"\x00" + key + nonce).digest()


def node(left: bytes, right: bytes) -> bytes:
    """``H(0x01, left, right)``."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def levels(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """All levels of the tree, leaves first; the last node of an odd level moves up as it is (RFC 6962).

    Raises:
        ValueError: no leaf.
    """
    if not leaves:
        raise ValueError("a tree of no leaves")
    tree = [list(leaves)]
    while len(tree[-1]) > 1:
        below = tree[-1]
        above = [node(below[i], below[i + 1]) for i in range(0, len(below) - 1, 2)]
        tree.append(above + below[len(above) * 2 :])
    return tree


def path(tree: Sequence[Sequence[bytes]], index: int) -> list[bytes]:
    """Siblings from leaf ``index`` up to the root."""
    siblings = []
    for level in tree[:-1]:
        if index ^ 1 < len(level):
            siblings.append(level[index ^ 1])
        index //= 2
    return siblings


def root(index: int, size: int, at: bytes, siblings: Sequence[bytes]) -> bytes | None:
    """The root that ``siblings`` lead to from leaf ``at``, ``index`` of ``size``; None for a path of another shape."""
    if not 0 <= index < size:
        return None
    left = list(siblings)
    while size > 1:
        if index ^ 1 < size:
            if not left:
                return None
            sibling = left.pop(0)
            at = node(sibling, at) if index & 1 else node(at, sibling)
        index, size = index // 2, (size + 1) // 2
    return None if left else at
