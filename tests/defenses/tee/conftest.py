"""The two shared AMD-signed cases, a forge of chains and reports under a root of the tests' own, and images of OVMF."""

import os
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from privbench.defenses.tee import firmware
from privbench.defenses.tee.command import attest

AT = datetime(2026, 11, 24, 12, tzinfo=UTC)
CASES = ("milan-v3-dstack", "genoa-v3-tsm-certtable-veraison")
PSS = padding.PSS(padding.MGF1(hashes.SHA384()), salt_length=48)
FMS = {"Milan": (0x19, 1, 1), "Genoa": (0x19, 0x11, 1), "Turin": (0x1A, 2, 1)}
ORDER = {"Turin": ("9", "1", "2", "3", None, None, None, "8")}
OLD = ("1", "2", None, None, None, None, "3", "8")


@dataclass
class Case:
    """One shared case: a folder with report.bin and the chain in DER."""

    folder: Path

    @property
    def report(self) -> bytes:
        return (self.folder / "report.bin").read_bytes()

    @property
    def certificates(self) -> list[bytes]:
        return [(self.folder / f"{name}.der").read_bytes() for name in ("vcek", "ark", "ask")]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    """Each shared case in turn; skipped where they aren't at hand."""
    data = os.environ.get("PRIVBENCH_DATA")
    folder = Path(data).parent / "snp" / request.param if data else None
    if folder is None or not folder.is_dir():
        pytest.skip(f"the attestation case {request.param} isn't on this machine")
    return Case(folder)


@cache
def rsa_key(name: str, bits: int = 4096) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


@cache
def leaf_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def oid(suffix: str) -> x509.ObjectIdentifier:
    return x509.ObjectIdentifier(f"1.3.6.1.4.1.3704.1.{suffix}")


def integer(value: int) -> bytes:
    return bytes((2, 1, value)) if value < 0x80 else bytes((2, 2, 0, value))


@dataclass
class Forge:
    """Settings of one forged piece of evidence; the defaults give one that holds under ``ark()``."""

    product: str = "Milan"
    kind: str = "VCEK"
    version: int = 3
    tcb: bytes = b""
    fields: dict[int, bytes] = field(default_factory=dict)
    extensions: dict[str, bytes | None] = field(default_factory=dict)
    critical: bool = False
    ask_name: str | None = None
    ask_bits: int = 4096
    ask_ca: bool = True
    ask_signer: str = "ark"
    direct: bool = False
    days: int = 9
    leaf_name: str | None = None
    structure: int | None = None

    def __post_init__(self) -> None:
        turin = self.product == "Turin"
        self.tcb = self.tcb or bytes((1, 4, 0, 0x18, 0, 0, 0, 0xD5) if turin else (4, 0, 0, 0, 0, 0, 0x18, 0xD5))

    def certificate(
        self, name: str, issuer: str, key: Any, signer: Any, ca: bool, extra: dict[str, bytes], days: int = 9
    ) -> bytes:
        named = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n)]) for n in (name, issuer)]
        builder = x509.CertificateBuilder().subject_name(named[0]).issuer_name(named[1]).public_key(key.public_key())
        builder = builder.serial_number(7).not_valid_before(AT - timedelta(9)).not_valid_after(AT + timedelta(days))
        if ca:
            builder = builder.add_extension(x509.BasicConstraints(True, None), True)
        for suffix, value in extra.items():
            builder = builder.add_extension(x509.UnrecognizedExtension(oid(suffix), value), self.critical)
        return builder.sign(signer, hashes.SHA384(), rsa_padding=PSS).public_bytes(Encoding.DER)

    def ark(self) -> bytes:
        key = rsa_key("ark")
        return self.certificate(f"ARK-{self.product}", f"ARK-{self.product}", key, key, True, {})

    def chain(self) -> list[bytes]:
        vlek = "VLEK-" if self.kind == "VLEK" else ""
        ask = self.ask_name or f"SEV-{vlek}{self.product}"
        key = rsa_key("ask", self.ask_bits)
        middle = self.certificate(ask, f"ARK-{self.product}", key, rsa_key(self.ask_signer), self.ask_ca, {})
        order = ORDER.get(self.product, OLD)
        structure = self.structure if self.structure is not None else int(self.product == "Turin")
        extra: dict[str, bytes | None] = {
            "1": integer(structure),
            "2": b"\x16" + bytes((len(self.product),)) + self.product.encode(),
        }
        extra |= {f"3.{n}": integer(b) for n, b in zip(order, self.tcb, strict=True) if n}
        extra |= (
            {"4": self.chip()[: 8 if self.product == "Turin" else 64]} if self.kind == "VCEK" else {"5": b"\x16\x03CSP"}
        )
        extra |= self.extensions
        held = {k: v for k, v in extra.items() if v is not None}
        name = self.leaf_name or f"SEV-{self.kind}"
        issuer, signer = (f"ARK-{self.product}", rsa_key("ark")) if self.direct else (ask, key)
        return [self.certificate(name, issuer, leaf_key(), signer, False, held, self.days), middle, self.ark()]

    def chip(self) -> bytes:
        if self.kind == "VLEK":
            return bytes(64)
        return bytes(range(1, 9)).ljust(64, b"\0") if self.product == "Turin" else bytes(range(1, 65))

    def report(self) -> bytes:
        raw = bytearray(1184)
        raw[0:4] = struct.pack("<I", self.version)
        raw[8:16] = struct.pack("<Q", 0x30000)
        raw[0x34:0x38] = struct.pack("<I", 1)
        raw[0x48:0x4C] = struct.pack("<I", 4 if self.kind == "VLEK" else 0)
        raw[0x90:0xC0] = b"m" * 48
        raw[0x50:0x90] = b"d" * 64
        for at in (0x38, 0x180, 0x1E0, 0x1F0):
            raw[at : at + 8] = self.tcb
        if self.version >= 3:
            raw[0x188:0x18B] = bytes(FMS[self.product])
        raw[0x1A0:0x1E0] = self.chip()
        for at, value in self.fields.items():
            if at < 0x2A0:
                raw[at : at + len(value)] = value
        r, s = utils.decode_dss_signature(leaf_key().sign(bytes(raw[:0x2A0]), ec.ECDSA(hashes.SHA384())))
        raw[0x2A0:0x2E8] = r.to_bytes(72, "little")
        raw[0x2E8:0x330] = s.to_bytes(72, "little")
        for at, value in self.fields.items():
            if at >= 0x2A0:
                raw[at : at + len(value)] = value
        return bytes(raw)

    def crl(self, revoked: int = 99, days: int = 9, signer: str = "ark", partial: bool = False) -> bytes:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"ARK-{self.product}")])
        builder = x509.CertificateRevocationListBuilder().issuer_name(name)
        builder = builder.last_update(AT - timedelta(9)).next_update(AT + timedelta(days))
        if partial:
            point = x509.IssuingDistributionPoint(None, None, True, False, None, False, False)
            builder = builder.add_extension(point, True)
        entry = x509.RevokedCertificateBuilder().serial_number(revoked).revocation_date(AT - timedelta(9)).build()
        made = builder.add_revoked_certificate(entry).sign(rsa_key(signer), hashes.SHA384(), rsa_padding=PSS)
        return made.public_bytes(Encoding.DER)


@pytest.fixture
def forge() -> Callable[..., Forge]:
    return Forge


# The SEV metadata of edk2's AmdSev build.
SECTIONS = (
    (0x800000, 0x9000, 1),
    (0x80A000, 0x3000, 1),
    (0x80D000, 0x1000, 2),
    (0x80E000, 0x1000, 3),
    (0x80F000, 0x1000, 4),
    (0x810000, 0x1000, 16),
    (0x811000, 0xF000, 1),
)


def image(
    sections: Any = SECTIONS,
    entries: Any = ((firmware.RESET_BLOCK, 0x80B004), (firmware.HASH_TABLE, 0x810C00)),
    count: int | None = None,
    offset: int | None = None,
    head: tuple[bytes, int] = (b"ASEV", 1),
    footer: str = "96b582de-1fb2-45f7-baea-a366c55a082d",
    total: int | None = None,
) -> bytes:
    """Two pages that end as OVMF ends: SEV metadata, a table of GUIDs, and 32 bytes; offset 0 leaves out the former."""
    listed = b"".join(struct.pack("<III", *section) for section in sections)
    number = len(sections) if count is None else count
    metadata = struct.pack("<4sIII", head[0], 16 + len(listed), head[1], number) + listed
    entries = [*entries, (firmware.SEV_METADATA, 1024 if offset is None else offset)] if offset != 0 else entries
    table = b"".join(struct.pack("<IH", value, 22) + guid.bytes_le for guid, value in entries)
    table += struct.pack("<H", len(table) + 18 if total is None else total) + uuid.UUID(footer).bytes_le
    body = bytes(range(256)) * ((8192 - 1024) // 256) + metadata
    return body.ljust(8192 - 32 - len(table), b"\0") + table + bytes(32)


@pytest.fixture(scope="session")
def ovmf_image() -> Callable[..., bytes]:
    return image


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """What a guest is started with, as files: an OVMF image, a kernel, an initrd."""
    made = {"ovmf": image(), "kernel": b"kernel" * 999, "initrd": b"initrd"}
    for name, raw in made.items():
        (tmp_path / name).write_bytes(raw)
    return {name: tmp_path / name for name in made}


@pytest.fixture
def measuring(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``privbench attest measure``: its status, what it printed, and its error of one line."""

    def call(*options: Any) -> tuple[int, str, str]:
        status = attest(["measure", *map(str, options)])
        out, err = capsys.readouterr()
        assert (not err) if status == 0 else (not out and err.count("\n") == 1)
        return status, out.strip(), err

    return call
