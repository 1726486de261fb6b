"""Masks: a key's pseudo-random vector, added to or taken off another vector of integers modulo 2^32 or 2^64."""

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES128
from cryptography.hazmat.primitives.ciphers.modes import CTR

from privbench.defenses.secagg.encoding import Integers

CHUNK = 1 << 17
"""Bytes at a time: a mask and what it is added to then stay in the cache."""
_ZEROS = bytes(CHUNK)


def keystream(key: bytes) -> CipherContext:
    """AES-128 in counter mode from 0: what encrypting zeros gives. A key serves for one mask alone."""
    return Cipher(AES128(key), CTR(bytes(16))).encryptor()


def apply(total: Integers, key: bytes, sign: int) -> None:
    """Add (``sign`` 1) or subtract (-1) the mask of ``key``, in place, modulo 2^32 or 2^64 as ``total``'s type has it.

    Args:
        total: ``(m,)`` uint32 or uint64.
        key: 16 bytes.
    """
    stream, step = keystream(key), CHUNK // total.itemsize
    buffer = bytearray(CHUNK + 15)
    mask = np.frombuffer(buffer, dtype=total.dtype, count=step)
    operation = np.add if sign > 0 else np.subtract
    for start in range(0, len(total), step):
        part = total[start : start + step]
        stream.update_into(_ZEROS[: part.nbytes], buffer)
        operation(part, mask[: len(part)], out=part)


def sign(client: int, other: int) -> int:
    """With which sign ``client`` adds the mask that it shares with ``other``; the other's is the opposite."""
    return 1 if client < other else -1
