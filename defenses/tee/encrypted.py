"""Files under a provisioned key: a data set or a model that only an attested guest can open.

The STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár 2015) with AES-256-GCM: chunks of 64 KiB, each under the
nonce (number of the chunk, 11 bytes; 1 for the last chunk, else 0). The key of a file is HKDF-SHA256 of the provisioned
key, a random salt and the file's label, so that one key serves many files and none passes for another. Memory doesn't
grow with the file.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privbench.benchmarks.build import require
from privbench.defenses.tee.protocol.binding import transcript
from privbench.defenses.tee.protocol.manifest import Refused

KEY = 32
"""Bytes of a key."""

CHUNK = 1 << 16
_MAGIC = b"privbench file 1"
_INFO = b"privbench encrypted file 1"
_SALT = 32
_TAG = 16


def new_key() -> bytes:
    """32 random bytes: a secret for :class:`~privbench.defenses.tee.broker.Broker`."""
    return AESGCM.generate_key(KEY * 8)


def seal_file(source: Path, target: Path, key: bytes, label: str) -> None:
    """Write ``source`` encrypted to ``target``, which appears when it is complete.

    Args:
        key: 32 bytes.
        label: what the file is, such as the secret's name; it opens under no other.

    Raises:
        ConfigError: a key of another length.
        OSError: a file can't be read or written.
    """
    salt = os.urandom(_SALT)
    cipher = _cipher(key, salt, label)
    with source.open("rb") as plain, _complete(target) as sealed:
        sealed.write(_MAGIC + salt)
        for nonce, chunk in _chunks(plain, CHUNK):
            sealed.write(cipher.encrypt(nonce, chunk, None))


def open_file(source: Path, target: Path, key: bytes, label: str) -> None:
    """The inverse of :func:`seal_file`. ``target`` appears only when every chunk has been verified, the last as last.

    Raises:
        ConfigError, OSError: as :func:`seal_file`.
        Refused: ``malformed_file``, or ``unopenable``: altered, cut, lengthened, of another label or another key.
    """
    with source.open("rb") as sealed, _complete(target) as plain:
        head = sealed.read(len(_MAGIC) + _SALT)
        if not head.startswith(_MAGIC) or len(head) != len(_MAGIC) + _SALT:
            raise Refused("malformed_file", f"{source} is not an encrypted file of this kind")
        cipher = _cipher(key, head[len(_MAGIC) :], label)
        for number, (nonce, chunk) in enumerate(_chunks(sealed, CHUNK + _TAG)):
            try:
                plain.write(cipher.decrypt(nonce, chunk, None))
            except (InvalidTag, ValueError):
                reason = f"{source}, chunk {number}: altered, cut, lengthened, of another label or another key"
                raise Refused("unopenable", reason) from None


def _cipher(key: bytes, salt: bytes, label: str) -> AESGCM:
    require(len(key) == KEY, "key", f"{len(key)} bytes", f"{KEY} bytes")
    return AESGCM(HKDF(SHA256(), KEY, salt, transcript(_INFO, label.encode())).derive(key))


def _chunks(file: BinaryIO, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Pairs of nonce and chunk; one, empty, for an empty file."""
    number, chunk = 0, file.read(size)
    while True:
        following = file.read(size)
        last = not following
        yield number.to_bytes(11, "big") + bytes((last,)), chunk
        if last:
            return
        number, chunk = number + 1, following


@contextmanager
def _complete(target: Path) -> Iterator[BinaryIO]:
    """A new file, readable by this user alone, that takes ``target``'s place at the end, or is gone after an error."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
