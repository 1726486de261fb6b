"""What the end of an OVMF image says about its launch: the pages that are measured, and where processors start.

A table of GUIDs ends 32 bytes before the image's end (QEMU, hw/i386/pc_sysfw_ovmf.c). One of its entries leads to the
SEV metadata (edk2, OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm). An image of COCONUT-SVSM ends the same way. What isn't
well-formed is refused: its digest would be that of no guest that starts.
"""

import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from privbench.benchmarks.build import ConfigError, require
from privbench.defenses.tee.report import Malformed

PAGE = 4096
END = 1 << 32
"""OVMF ends at 4 GiB in the guest's memory."""
LARGEST = 64 << 20
SECTION_TYPES = {1: "memory", 2: "secrets", 3: "CPUID", 4: "SVSM calling area", 0x10: "kernel hashes"}
KERNEL_HASHES = 0x10
TABLE_BYTES = 176
"""The table of kernel, initrd and command line hashes with its padding, which has to fit into its page."""
RESET_BLOCK = uuid.UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
SVSM_INFO = uuid.UUID("a789a612-0597-4c4b-a49f-cbb1fe9d1ddd")
HASH_TABLE = uuid.UUID("7255371f-3a3b-4b04-927b-1da6efa8d454")
SEV_METADATA = uuid.UUID("dc886566-984a-4798-a75e-5585a7bf67cc")
_FOOTER = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
_ENTRY = 18  # u16 size with what precedes it, then the GUID
_MOST_SECTIONS = 64
_MOST_BYTES = 256 << 20  # a digest takes one hash a page; firmware has less than 1 MiB of sections


@dataclass(frozen=True)
class Section:
    """A range of guest memory that is measured at launch.

    Args:
        gpa: guest physical address, a multiple of 4096 below 4 GiB.
        size: bytes, a multiple of 4096; one page but for memory and the SVSM calling area.
        section_type: of :data:`SECTION_TYPES`.

    Raises:
        ConfigError: a value out of range.
    """

    gpa: int
    size: int
    section_type: int

    def __post_init__(self) -> None:
        whole("gpa", self.gpa, 0, END - PAGE, PAGE)
        known = type(self.section_type) is int and self.section_type in SECTION_TYPES
        names = ", ".join(f"{number} ({name})" for number, name in SECTION_TYPES.items())
        require(known, "section_type", self.section_type, f"one of {names}")
        whole("size", self.size, PAGE, _MOST_BYTES if self.section_type in (1, 4) else PAGE, PAGE)


@dataclass(frozen=True)
class Image:
    """An image as it was read: its bytes, its sections, and the first four bytes of entries in its table, by GUID."""

    raw: bytes
    sections: tuple[Section, ...]
    words: dict[uuid.UUID, int]


def whole(field: str, value: Any, least: int, most: int, step: int = 1) -> None:
    """Require an integer from ``least`` to ``most``, and a multiple of ``step``.

    Raises:
        ConfigError: anything else, True and 1.0 included.
    """
    expected = f"an integer from {least} to {most}" + (f", a multiple of {step}" if step > 1 else "")
    require(type(value) is int and least <= value <= most and value % step == 0, field, value, expected)


def check_sections(sections: Sequence[Section]) -> None:
    """Refuse no sections, more than 64, or more than 256 MiB in all."""
    require(0 < len(sections) <= _MOST_SECTIONS, "ovmf_sections", len(sections), f"1 to {_MOST_SECTIONS} sections")
    size = sum(section.size for section in sections)
    require(size <= _MOST_BYTES, "ovmf_sections", size, f"at most {_MOST_BYTES} bytes in all")


def parse(raw: bytes) -> Image:
    """Read an image of OVMF, or of COCONUT-SVSM.

    Raises:
        Malformed: not such an image, truncated, or without SEV metadata.
    """
    if not raw or len(raw) % PAGE or len(raw) > LARGEST:
        raise Malformed(f"{len(raw)} bytes: whole pages of {PAGE} are needed, at most {LARGEST} bytes")
    table = _table(raw)
    words = {uuid.UUID(bytes_le=guid): int.from_bytes(data[:4], "little") for guid, data in table.items() if data[3:]}
    if SEV_METADATA not in words:
        raise Malformed("no SEV metadata: such a build doesn't start as an SEV-SNP guest")
    sections = _sections(raw, words[SEV_METADATA])
    try:
        check_sections(sections)
    except ConfigError as error:
        raise Malformed(f"SEV metadata: {error}") from None
    return Image(raw, sections, words)


def _table(raw: bytes) -> dict[bytes, bytes]:
    end = len(raw) - 32
    if raw[end - 16 : end] != _FOOTER.bytes_le:
        raise Malformed("no table of GUIDs 32 bytes before its end: not an OVMF image, or cut short")
    (total,) = struct.unpack_from("<H", raw, end - _ENTRY)
    start, at = end - total, end - _ENTRY
    if start < 0 or at < start:
        raise Malformed(f"a table of {total} bytes doesn't fit")
    found: dict[bytes, bytes] = {}
    while at > start:
        size = struct.unpack_from("<H", raw, at - _ENTRY)[0] if at - _ENTRY >= start else 0
        if size < _ENTRY or at - size < start:
            raise Malformed("an entry isn't within the table of GUIDs")
        guid = raw[at - 16 : at]
        # QEMU takes one of two entries with the same GUID and sev-snp-measure the other.
        if guid in found:
            raise Malformed(f"{uuid.UUID(bytes_le=guid)} comes twice in the table of GUIDs")
        found[guid] = raw[at - size : at - _ENTRY]
        at -= size
    return found


def _sections(raw: bytes, from_end: int) -> tuple[Section, ...]:
    if not 16 <= from_end <= len(raw):
        raise Malformed(f"SEV metadata {from_end} bytes before the end isn't within the image")
    at = len(raw) - from_end
    signature, size, version, count = struct.unpack_from("<4sIII", raw, at)
    if signature != b"ASEV" or version != 1:
        raise Malformed("SEV metadata doesn't begin with ASEV, version 1")
    if count > _MOST_SECTIONS or 16 + 12 * count > min(size, from_end):
        raise Malformed(f"SEV metadata: {count} sections aren't within its {size} bytes")
    found = []
    for number in range(count):
        try:
            found.append(Section(*struct.unpack_from("<III", raw, at + 16 + 12 * number)))
        except ConfigError as error:
            raise Malformed(f"SEV metadata: section {number}: {error}") from None
    return tuple(found)
