"""Reading small text files of a machine: what isn't there, or may not be read, is ``None``."""

import os
from pathlib import Path

LARGEST = 4 * 2**20
"""Bytes that are read of a file."""

PART = 2**16


def text(root: Path, path: str, end: bool = False) -> str | None:
    """The stripped text of ``root/path``, its beginning or its ``end``; ``None`` where it can't be read."""
    try:
        with (root / path).open("rb", buffering=0) as file:
            if end:
                file.seek(max(0, file.seek(0, os.SEEK_END) - LARGEST))
            found = b""
            # In small parts: the kernel allocates what a reader of /proc/sys offers, and refuses megabytes.
            while len(found) < LARGEST and (more := file.read(PART)):
                found += more
        return found.decode(errors="replace").strip("\0 \t\n")
    except OSError:
        return None


def number(root: Path, path: str) -> int | None:
    """The whole number in ``root/path``; ``None`` where there is none."""
    return whole(text(root, path))


def whole(written: str | None) -> int | None:
    """A number as text, of a kind that kernels write: ``12``, ``0x1f``; ``None`` for all else."""
    try:
        return int(written, 0) if written else None
    except ValueError:
        return None


def listed(root: Path, path: str, pattern: str) -> list[Path]:
    """Entries of a folder that match, by the number in their name; empty where it can't be read."""
    try:
        found = list((root / path).glob(pattern))
    except OSError:
        return []
    return sorted(found, key=lambda p: (int("".join(filter(str.isdigit, p.name)) or 0), p.name))


def chosen(written: str | None) -> str | None:
    """The choice in brackets of a line such as ``always [madvise] never``."""
    if written is None or "[" not in written:
        return written
    return written.partition("[")[2].partition("]")[0]


def cpus(written: str | None) -> list[int]:
    """A list such as ``0-3,8`` as numbers; empty for what isn't one."""
    found: list[int] = []
    for part in (written or "").split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit() and (not last or last.isdigit()):
            found += range(int(first), int(last or first) + 1)
    return found


def size(written: str | None) -> int | None:
    """Bytes of a size such as ``512K`` or ``32M``."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    if not written or not written.rstrip("KMGB").strip().isdigit():
        return None
    return int(written.rstrip("KMGB").strip()) * units.get(written.rstrip("B")[-1:], 1)


def fields(written: str | None) -> dict[str, str]:
    """Lines ``name : value`` by name, the first of each."""
    found: dict[str, str] = {}
    for line in (written or "").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.strip(), value.strip())
    return found
