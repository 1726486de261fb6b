"""The attestation report: 1184 bytes, little-endian (AMD 56860, ATTESTATION_REPORT).

Reading never fails but for the size: a report that breaks a rule of the format can still be shown, and
:func:`violations` names each rule. What is signed are the raw bytes, which are kept; nothing here writes a report out
again.
"""

from dataclasses import dataclass
from functools import cached_property

SIZE = 0x4A0
SIGNED = 0x2A0
VERSIONS = range(2, 6)
HOST_REQUESTED = 0xFFFFFFFF
SIGNING_KEYS = {0: "VCEK", 1: "VLEK"}

POLICY_BITS = {
    16: "smt",
    18: "migration",
    19: "debug",
    20: "single-socket",
    21: "cxl",
    22: "aes-256-xts",
    23: "rapl-disabled",
    24: "ciphertext-hiding",
    25: "page-swap-disabled",
}
PLATFORM_BITS = {
    0: "smt",
    1: "tsme",
    2: "ecc",
    3: "rapl-disabled",
    4: "ciphertext-hiding",
    5: "alias-check",
    7: "tio",
}

_INTEGERS = {
    "version": (0x00, 4),
    "guest_svn": (0x04, 4),
    "policy": (0x08, 8),
    "vmpl": (0x30, 4),
    "signature_algo": (0x34, 4),
    "platform_info": (0x40, 8),
    "flags": (0x48, 4),
    "cpuid_family": (0x188, 1),
    "cpuid_model": (0x189, 1),
    "cpuid_stepping": (0x18A, 1),
    "launch_mitigation_vector": (0x1F8, 8),
    "current_mitigation_vector": (0x200, 8),
}
_BYTES = {
    "family_id": (0x10, 16),
    "image_id": (0x20, 16),
    "current_tcb": (0x38, 8),
    "report_data": (0x50, 64),
    "measurement": (0x90, 48),
    "host_data": (0xC0, 32),
    "id_key_digest": (0xE0, 48),
    "author_key_digest": (0x110, 48),
    "report_id": (0x140, 32),
    "report_id_ma": (0x160, 32),
    "reported_tcb": (0x180, 8),
    "chip_id": (0x1A0, 64),
    "committed_tcb": (0x1E0, 8),
    "current_firmware": (0x1E8, 3),
    "committed_firmware": (0x1EC, 3),
    "launch_tcb": (0x1F0, 8),
}
TCBS = ("reported_tcb", "current_tcb", "committed_tcb", "launch_tcb")


class Malformed(ValueError):
    """Bytes that are not what they have to be."""


@dataclass(frozen=True)
class Report:
    """A report as it was read. ``raw`` are its 1184 bytes; every other field is read from them."""

    raw: bytes
    version: int
    guest_svn: int
    policy: int
    vmpl: int
    signature_algo: int
    platform_info: int
    flags: int
    cpuid_family: int
    cpuid_model: int
    cpuid_stepping: int
    launch_mitigation_vector: int
    current_mitigation_vector: int
    family_id: bytes
    image_id: bytes
    current_tcb: bytes
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    chip_id: bytes
    committed_tcb: bytes
    current_firmware: bytes
    committed_firmware: bytes
    launch_tcb: bytes

    @property
    def author_key_enabled(self) -> bool:
        return bool(self.flags & 1)

    @property
    def chip_key_masked(self) -> bool:
        return bool(self.flags & 2)

    @property
    def signing_key(self) -> str | None:
        """``VCEK`` or ``VLEK``; None for every other value of SIGNING_KEY."""
        return SIGNING_KEYS.get(self.flags >> 2 & 7)

    @property
    def signed(self) -> bytes:
        """The bytes under the signature."""
        return self.raw[:SIGNED]

    @cached_property
    def signature(self) -> tuple[int, int]:
        """R and S, both below 2^384 in a well-formed report."""
        return _integer(self.raw, 0x2A0, 72), _integer(self.raw, 0x2E8, 72)

    def as_dict(self) -> dict[str, object]:
        """Every field for printing: byte strings in hexadecimal, bits by name, a stable set of keys."""
        shown: dict[str, object] = {name: getattr(self, name) for name in _INTEGERS}
        shown |= {name: getattr(self, name).hex() for name in _BYTES}
        for name in ("current_firmware", "committed_firmware"):
            build, minor, major = getattr(self, name)
            shown[name] = f"{major}.{minor}.{build}"
        r, s = self.signature
        return shown | {
            "policy": f"{self.policy:#x}",
            "policy_bits": named(self.policy >> 16 << 16 & ~(1 << 17), POLICY_BITS),
            "policy_abi": f"{self.policy >> 8 & 255}.{self.policy & 255}",
            "platform_info": f"{self.platform_info:#x}",
            "platform_info_bits": named(self.platform_info, PLATFORM_BITS),
            "flags": f"{self.flags:#x}",
            "author_key_enabled": self.author_key_enabled,
            "chip_key_masked": self.chip_key_masked,
            "signing_key": self.signing_key,
            "launch_mitigation_vector": f"{self.launch_mitigation_vector:#x}",
            "current_mitigation_vector": f"{self.current_mitigation_vector:#x}",
            "signature_r": f"{r:0144x}",
            "signature_s": f"{s:0144x}",
        }


def parse(raw: bytes) -> Report:
    """Read a report.

    Raises:
        Malformed: ``raw`` is not 1184 bytes long. Any other string of bytes is read; see :func:`violations`.
    """
    if len(raw) != SIZE:
        raise Malformed(f"a report has {SIZE} bytes, this has {len(raw)}")
    integers = {name: _integer(raw, at, size) for name, (at, size) in _INTEGERS.items()}
    strings = {name: raw[at : at + size] for name, (at, size) in _BYTES.items()}
    return Report(raw=raw, **integers, **strings)


def violations(report: Report) -> list[str]:
    """Each rule of the format that ``report`` breaks, in words; an empty list for a well-formed one."""
    broken = []
    if report.version not in VERSIONS:
        broken.append(f"version {report.version}: 2 to 5 are known")
    if report.signature_algo != 1:
        broken.append(f"SIGNATURE_ALGO {report.signature_algo}: 1 is ECDSA P-384 with SHA-384")
    if report.signing_key is None:
        broken.append(f"SIGNING_KEY {report.flags >> 2 & 7}: 0 is VCEK, 1 is VLEK")
    if not report.policy >> 17 & 1:
        broken.append("bit 17 of POLICY is 0: it must be 1")
    if report.vmpl > 3:
        asked = ": the host asked for this report, not the guest" if report.vmpl == HOST_REQUESTED else ""
        broken.append(f"VMPL {report.vmpl:#x}: 0 to 3{asked}")
    if report.flags >> 5:
        broken.append(f"reserved flags {report.flags >> 5 << 5:#x}: must be zero")
    broken += [f"reserved bytes {a:#x}-{b - 1:#x}: must be zero" for a, b in _zeros(report) if any(report.raw[a:b])]
    return broken


def named(bits: int, names: dict[int, str]) -> list[str]:
    """The names of the bits that are set; ``bit 26`` for one that has no name."""
    return [names.get(i, f"bit {i}") for i in range(bits.bit_length()) if bits >> i & 1]


def _zeros(report: Report) -> list[tuple[int, int]]:
    cpuid = 0x188 if report.version < 3 else 0x18B
    mitigation = 0x1F8 if report.version < 5 else 0x208
    fixed = [(0x4C, 0x50), (0x1EB, 0x1EC), (0x1EF, 0x1F0), (0x2D0, 0x2E8), (0x318, 0x330), (0x330, SIZE)]
    return [(cpuid, 0x1A0), (mitigation, SIGNED), *fixed]


def _integer(raw: bytes, at: int, size: int) -> int:
    return int.from_bytes(raw[at : at + size], "little")
