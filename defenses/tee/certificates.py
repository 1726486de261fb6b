"""Certificates in every form they come in, and the fields of AMD's leaf certificates (AMD 57230).

The one place that loads certificates: every VCEK and VLEK has serial number 0, of which ``cryptography`` warns that it
will be refused one day. pyproject.toml bounds the version for that reason.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509
from cryptography.x509.oid import NameOID

from privbench.defenses.tee import table
from privbench.defenses.tee.der import pem_body, quiet, signed_part, tlv
from privbench.defenses.tee.report import Malformed

LARGEST = 1 << 20
MOST = 256
_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
_PEM = re.compile(_BEGIN + rb"\s*MI")
_DER = re.compile(rb"0\x82..0\x82..\xa0\x03\x02\x01\x02", re.DOTALL)
_ARC = "1.3.6.1.4.1.3704.1."
_SPL = {"3.1": "boot_loader", "3.2": "tee", "3.3": "snp", "3.8": "microcode", "3.9": "fmc"}
_STRINGS = (0x0C, 0x13, 0x16)


@dataclass(frozen=True)
class Certificate:
    """One X.509 certificate. ``der`` are its bytes, ``signed`` those under its signature, as they came."""

    der: bytes
    x509: x509.Certificate
    signed: bytes

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
    if not any(raw):
        return []  # the table of a host that filled in none
    if not table.looks_like(raw):
        return _plain(raw)
    entries = table.parse(raw)
    return [c for name in ("ARK", "ASK", "VCEK", "VLEK") if name in entries for c in _plain(entries[name])]


def recognised(raw: bytes) -> bool:
    """Whether ``raw`` claims to hold certificates: in a folder, everything else (CRLs, keys, JSON) is passed over."""
    return bool(_PEM.search(raw) or _DER.match(raw)) or table.looks_like(raw)


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


def _plain(raw: bytes) -> list[Certificate]:
    """DER or PEM. An entry of a table goes here, so that no table can hold another."""
    if raw[:2] == b"\x30\x82":
        return [_load(raw)]
    _, *bodies = raw.split(_BEGIN)
    if not bodies:
        raise Malformed("neither a certificate (DER or PEM) nor a certificate table")
    if len(bodies) > MOST:
        raise Malformed(f"{len(bodies)} certificates: at most {MOST}")
    return [_load(pem_body(body, _END)) for body in bodies]


@lru_cache(maxsize=2 * MOST)
def _load(der: bytes) -> Certificate:
    try:
        with quiet():
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
    return Certificate(der, read, signed_part(der, "certificate", 2))


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
