"""Certificates in every form they come in, and the fields of AMD's leaf certificates (AMD 57230).

The one place that loads certificates: every VCEK and VLEK has serial number 0, of which ``cryptography`` warns that it
will be refused one day. pyproject.toml bounds the version for that reason.
"""

import base64
import binascii
import re
import warnings
from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import NameOID

from privbench.defenses.tee import table
from privbench.defenses.tee.report import Malformed

LARGEST = 1 << 20
MOST = 64
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)
_ARC = "1.3.6.1.4.1.3704.1."
_SPL = {"3.1": "boot_loader", "3.2": "tee", "3.3": "snp", "3.8": "microcode", "3.9": "fmc"}
_STRINGS = (0x0C, 0x13, 0x16)


@dataclass(frozen=True)
class Certificate:
    """One X.509 certificate. ``der`` are its bytes; two certificates are equal when their bytes are."""

    der: bytes
    x509: x509.Certificate

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Certificate) and self.der == other.der

    def __hash__(self) -> int:
        return hash(self.der)

    @property
    def name(self) -> str:
        """The subject's common name, empty when there is not exactly one."""
        found = self.x509.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(found[0].value) if len(found) == 1 else ""


@dataclass(frozen=True)
class Leaf:
    """What AMD wrote into a VCEK's or VLEK's extensions. None for one that is missing."""

    structure: int | None
    product: str | None
    spl: dict[str, int]
    hwid: bytes | None
    csp: str | None


def load(raw: bytes) -> list[Certificate]:
    """Certificates in DER, PEM (one or a chain) or a certificate table.

    Raises:
        Malformed: ``raw`` is none of these, or a certificate in it can't be read.
    """
    if len(raw) > LARGEST:
        raise Malformed(f"certificates of {len(raw)} bytes: at most {LARGEST}")
    if b"-----BEGIN CERTIFICATE-----" in raw and not table.looks_like(raw):
        return [_load(_decoded(body)) for body in _PEM.findall(raw)]
    if raw[:2] == b"\x30\x82":
        return [_load(raw)]
    if not table.looks_like(raw):
        raise Malformed("neither a certificate (DER or PEM) nor a certificate table")
    entries = table.parse(raw)
    return [c for name in ("ARK", "ASK", "VCEK", "VLEK") if name in entries for c in load(entries[name])]


def recognised(raw: bytes) -> bool:
    """Whether ``raw`` claims to hold certificates: in a folder, everything else is passed over."""
    return b"-----BEGIN CERTIFICATE-----" in raw or raw[:2] == b"\x30\x82" or table.looks_like(raw)


def leaf(certificate: Certificate) -> Leaf:
    """Read a leaf's extensions.

    Raises:
        Malformed: a value that isn't encoded as AMD 57230 says.
    """
    held = {e.oid.dotted_string: e.value.public_bytes() for e in certificate.x509.extensions if _amd(e.oid)}
    values = {oid[len(_ARC) :]: value for oid, value in held.items()}
    return Leaf(
        structure=_integer(values["1"]) if "1" in values else None,
        product=_string(values["2"]) if "2" in values else None,
        spl={name: _integer(values[oid]) for oid, name in _SPL.items() if oid in values},
        hwid=_octets(values["4"]) if "4" in values else None,
        csp=_string(values["5"]) if "5" in values else None,
    )


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


@lru_cache(maxsize=256)
def _load(der: bytes) -> Certificate:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            read = x509.load_der_x509_certificate(der)
            # cryptography reads these late; all that can fail, fails here.
            _ = (
                read.extensions,
                read.subject,
                read.issuer,
                read.public_key(),
                read.signature,
                read.signature_hash_algorithm,
            )
            _ = (read.not_valid_before_utc, read.not_valid_after_utc, read.serial_number)
    except Exception as error:  # its parser raises many kinds, some of them undocumented
        raise Malformed(f"certificate: {' '.join(str(error).split()) or type(error).__name__}") from None
    _canonical(der)
    return Certificate(der, read)


def _canonical(der: bytes) -> None:
    """Refuse what lies outside the signature and could still be altered: lengths, the outer algorithm, padding bits."""
    _, start, end = tlv(der, 0)
    _, first, tbs_end = tlv(der, start)
    _, _, after_version = tlv(der, first)
    _, _, after_serial = tlv(der, after_version)
    _, _, inner_end = tlv(der, after_serial)
    _, _, outer_end = tlv(der, tbs_end)
    tag, bits, bits_end = tlv(der, outer_end)
    if end != len(der) or bits_end != end:
        raise Malformed("certificate: bytes after its end")
    if der[after_serial:inner_end] != der[tbs_end:outer_end]:
        raise Malformed("certificate: the signature's algorithm is not the one that was signed")
    if tag != 3 or der[bits] != 0:
        raise Malformed("certificate: the signature isn't a whole number of bytes")


def _decoded(body: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(body.split()), validate=True)
    except binascii.Error as error:
        raise Malformed(f"certificate: not base64: {error}") from None


def _amd(oid: x509.ObjectIdentifier) -> bool:
    return oid.dotted_string.startswith(_ARC)


def _integer(value: bytes) -> int:
    tag, start, end = tlv(value, 0)
    body = value[start:end]
    minimal = (len(body) == 1 and body[0] < 0x80) or (len(body) == 2 and body[0] == 0 and body[1] >= 0x80)
    if tag != 2 or end != len(value) or not minimal:
        raise Malformed(f"certificate extension {value.hex()}: expected a DER integer from 0 to 255")
    return body[-1]


def _string(value: bytes) -> str:
    tag, start, end = tlv(value, 0)
    if tag not in _STRINGS or end != len(value) or not value[start:end].isascii():
        raise Malformed(f"certificate extension {value.hex()}: expected an ASCII string")
    return value[start:end].decode()


def _octets(value: bytes) -> bytes:
    if len(value) in (8, 64):
        return value
    if len(value) in (10, 66) and value[:2] == bytes((4, len(value) - 2)):
        return value[2:]
    raise Malformed(f"certificate extension HWID of {len(value)} bytes: expected 64, or 8 on Turin")
