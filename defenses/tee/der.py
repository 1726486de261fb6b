"""What certificates and revocation lists have in common: DER, PEM, and the envelope of a signature (X.690, RFC 5280).

``cryptography`` writes what it has read out again when it is asked for the bytes under a signature. Here they are cut
out as they came, and everything around them has only one form: nothing of a signed file can be altered.
"""

import base64
import binascii
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from privbench.defenses.tee.report import Malformed


def tlv(raw: bytes, at: int) -> tuple[int, int, int]:
    """Tag, start and end of the content of the DER element at ``at``.

    Raises:
        Malformed: not minimal, indefinite, or longer than ``raw``.
    """
    if at + 2 > len(raw):
        raise Malformed("DER: cut short")
    length, start = raw[at + 1], at + 2
    if length >= 0x80:
        size = length & 0x7F
        length = int.from_bytes(raw[start : start + size], "big")
        if not 1 <= size <= 4 or length < 0x80 or length >> 8 * (size - 1) == 0:
            raise Malformed("DER: a length that isn't minimal")
        start += size
    if start + length > len(raw):
        raise Malformed("DER: cut short")
    return raw[at], start, start + length


def signed_part(der: bytes, what: str, before: int) -> bytes:
    """The bytes under the signature of a certificate or revocation list.

    Args:
        der: a sequence of what is signed, an algorithm and a signature.
        what: its name, for messages.
        before: how many elements of what is signed come before the algorithm, which is repeated there.

    Raises:
        Malformed: a length that isn't minimal, bytes at the end, an algorithm that isn't the one that was signed, or
            unused bits: none of these is signed, so each could be altered.
    """
    _, start, end = tlv(der, 0)
    _, inner, signed_end = tlv(der, start)
    for _ in range(before):
        _, _, inner = tlv(der, inner)
    _, _, inner_end = tlv(der, inner)
    _, _, outer_end = tlv(der, signed_end)
    tag, bits, bits_end = tlv(der, outer_end)
    if end != len(der) or bits_end != end:
        raise Malformed(f"{what}: bytes after its end")
    if der[inner:inner_end] != der[signed_end:outer_end]:
        raise Malformed(f"{what}: the signature's algorithm is not the one that was signed")
    if tag != 3 or der[bits:bits_end][:1] != b"\0":
        raise Malformed(f"{what}: the signature isn't a whole number of bytes")
    return der[start:signed_end]


def pem_body(text: bytes, end: bytes) -> bytes:
    """What is in base64 from the start of ``text`` to ``end``.

    Raises:
        Malformed: no ``end``, or not base64.
    """
    body, found, _ = text.partition(end)
    if not found:
        raise Malformed("PEM without its end")
    try:
        return base64.b64decode(b"".join(body.split()), validate=True)
    except binascii.Error as error:
        raise Malformed(f"PEM: not base64: {error}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep ``cryptography``'s warnings of odd but harmless fields, such as serial number 0, off stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
