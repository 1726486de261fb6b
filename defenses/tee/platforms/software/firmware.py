"""What a chip's firmware does: it signs a report of a guest that it launched (AMD 56860, SNP_GUEST_REQUEST)."""

import secrets
import struct
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from privbench.defenses.tee.platforms.platform import Evidence
from privbench.defenses.tee.platforms.software.authority import TCB, Chip
from privbench.defenses.tee.report import SIGNED, SIZE
from privbench.defenses.tee.software import LABEL, MARK

VERSION = 3
POLICY = 0x30000
"""SMT allowed and the bit that must be 1; no debugging, no migration."""


@dataclass(frozen=True)
class Launched:
    """What the firmware knows of a guest since its launch; the guest can't change it.

    Args:
        measurement: 48 bytes, of the code that was loaded.
        host_data: 32 bytes that the launching host chose.
        report_id: 32 bytes, this guest's for its lifetime.
    """

    measurement: bytes
    host_data: bytes = bytes(32)
    report_id: bytes = field(default_factory=lambda: secrets.token_bytes(32))


def evidence(chip: Chip, guest: Launched, report_data: bytes) -> Evidence:
    """A signed report of ``guest`` over its 64 bytes of ``report_data``, and the chain."""
    raw = bytearray(SIZE)
    struct.pack_into("<IIQ", raw, 0x00, VERSION, 0, POLICY)
    struct.pack_into("<I", raw, 0x34, 1)
    _put(raw, 0x10, MARK + b" TEE", 16)
    _put(raw, 0x20, LABEL[:16].encode(), 16)
    _put(raw, 0x50, report_data, 64)
    _put(raw, 0x90, guest.measurement, 48)
    _put(raw, 0xC0, guest.host_data, 32)
    _put(raw, 0x140, guest.report_id, 32)
    _put(raw, 0x160, b"\xff" * 32, 32)
    _put(raw, 0x1A0, chip.id, 64)
    for at in (0x38, 0x180, 0x1E0, 0x1F0):
        _put(raw, at, TCB, 8)
    r, s = utils.decode_dss_signature(chip.key.sign(bytes(raw[:SIGNED]), ec.ECDSA(hashes.SHA384())))
    raw[0x2A0:0x2E8], raw[0x2E8:0x330] = r.to_bytes(72, "little"), s.to_bytes(72, "little")
    return Evidence(bytes(raw), chip.certificates)


def _put(raw: bytearray, at: int, value: bytes, size: int) -> None:
    if len(value) > size:
        raise ValueError(f"{len(value)} bytes at {at:#x} of a report: at most {size}")
    raw[at : at + len(value)] = value
