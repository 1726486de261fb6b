"""Keys and certificates of one software platform, made for one run: root, intermediate and chip key.

The chain has AMD's form (AMD 57230): RSA-4096 with RSASSA-PSS and SHA-384, a P-384 leaf with AMD's extensions.
"""

import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from privbench.defenses.tee.product import COMPONENTS, SOFTWARE
from privbench.defenses.tee.software import LABEL, MARK, MARKER

LIFETIME = timedelta(days=30)
"""How long certificates are valid. Keys live as long as the run; records can be verified at their own time."""

TCB = bytes(8)
_PSS = padding.PSS(padding.MGF1(hashes.SHA384()), salt_length=48)
_AMD = "1.3.6.1.4.1.3704.1."
_SPL = {"boot_loader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8"}


@dataclass(frozen=True)
class Chip:
    """One processor.

    Args:
        id: 64 bytes that start with ``SOFTWARE``.
        key: signs reports.
        certificates: leaf, intermediate and root, in DER.
    """

    id: bytes
    key: ec.EllipticCurvePrivateKey
    certificates: tuple[bytes, bytes, bytes]


class Authority:
    """A root and an intermediate, whose keys never leave this object, and chips certified by them."""

    def __init__(self, now: datetime | None = None):
        self._start = now or datetime.now(UTC)
        with ThreadPoolExecutor(2) as pool:
            root_key, self._key = pool.map(lambda _: rsa.generate_private_key(65537, 4096), range(2))
        self.root = _certificate("ARK", "ARK", root_key.public_key(), root_key, self._start, True, {})
        self._middle = _certificate("ASK", "ARK", self._key.public_key(), root_key, self._start, True, {})

    def chip(self) -> Chip:
        """A new chip with a key of its own."""
        key, name = ec.generate_private_key(ec.SECP384R1()), secrets.token_hex(24)
        chip_id = f"{MARK.decode()} {name}".encode().ljust(64, b"\0")
        extensions = {"1": _integer(0), "2": b"\x16" + bytes((len(SOFTWARE),)) + SOFTWARE.encode(), "4": chip_id}
        extensions |= {_SPL[part]: _integer(TCB[at]) for part, at in COMPONENTS[SOFTWARE].items()}
        leaf = _certificate("VCEK", "ASK", key.public_key(), self._key, self._start, False, extensions)
        return Chip(chip_id, key, (leaf, self._middle, self.root))


def _certificate(
    name: str,
    issuer: str,
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    signer: rsa.RSAPrivateKey,
    start: datetime,
    authority: bool,
    extensions: dict[str, bytes],
) -> bytes:
    subject, above = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{LABEL} {n}")]) for n in (name, issuer))
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(above).public_key(key)
    # Of one length always, so that evidence has the same size in every run.
    builder = builder.serial_number(secrets.randbits(126) | 1 << 126)
    # A clock that another party reads may be a little behind.
    builder = builder.not_valid_before(start - timedelta(minutes=5)).not_valid_after(start + LIFETIME)
    if authority:
        builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
    builder = builder.add_extension(x509.UnrecognizedExtension(MARKER, LABEL.encode()), critical=True)
    for suffix, value in extensions.items():
        oid = x509.ObjectIdentifier(_AMD + suffix)
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)
    return builder.sign(signer, hashes.SHA384(), rsa_padding=_PSS).public_bytes(Encoding.DER)


def _integer(value: int) -> bytes:
    return bytes((2, 1, value)) if value < 0x80 else bytes((2, 2, 0, value))
