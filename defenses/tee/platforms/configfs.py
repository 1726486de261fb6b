"""A report from the kernel's configfs-tsm (Linux 6.7 and later; Documentation/ABI/testing/configfs-tsm).

A fresh entry takes 64 bytes in ``inblob`` and gives the report in ``outblob``, the host's certificate table in
``auxblob``. Anyone with the same rights can write to the same entry, so ``generation`` is compared throughout: the
kernel raises it at each write. What was raced or torn is asked for anew, with an entry of its own.
"""

import contextlib
import errno
import os
import struct
import time
import uuid
from pathlib import Path

from privbench.defenses.tee.certificates import LARGEST
from privbench.defenses.tee.platforms.platform import Unavailable
from privbench.defenses.tee.report import Malformed, parse

PROVIDER = "sev_guest"
PAUSE = 0.1
"""Seconds between two attempts."""

_AGAIN = (errno.EBUSY, errno.EWOULDBLOCK, errno.EINTR, errno.ENOENT, errno.EEXIST)
_ENTRY = struct.Struct("<16sII")


class _Torn(Exception):
    """An attempt that another one can make good."""


class Files:
    """The operations on configfs that the protocol needs; tests put a simulated kernel here."""

    def mkdir(self, path: Path) -> None:
        path.mkdir()

    def rmdir(self, path: Path) -> None:
        path.rmdir()

    def read(self, path: Path) -> bytes:
        """All bytes from one opening: the kernel takes its copy of a blob at the first read. At most 1 MiB and one."""
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = b""
            while len(found) <= LARGEST and (more := os.read(handle, LARGEST + 1 - len(found))):
                found += more
            return found
        finally:
            os.close(handle)

    def write(self, path: Path, raw: bytes) -> int:
        """One unbuffered write; the number of bytes taken. ``inblob`` reaches the driver when it is closed."""
        handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            return os.write(handle, raw)
        finally:
            os.close(handle)


def report(
    folder: Path, report_data: bytes, vmpl: int | None, attempts: int, files: Files | None = None
) -> tuple[bytes, bytes | None]:
    """A report over ``report_data`` and the host's certificate table; None where there is none.

    Args:
        folder: of configfs-tsm, ``/sys/kernel/config/tsm/report``.
        report_data: 64 bytes; REPORT_DATA of the report that is returned is exactly these.
        vmpl: the privilege level to ask for; None leaves it to the kernel, which takes 0.
        attempts: how often to ask where another writer was in the way.

    Raises:
        Unavailable: why there is no report.
    """
    files = files or Files()
    reasons: list[str] = []
    for n in range(attempts):
        if n:
            time.sleep(PAUSE)
        try:
            return _attempt(files, folder, report_data, vmpl)
        except _Torn as error:
            reasons.append(str(error))
    raise Unavailable(f"{attempts} attempts, none undisturbed: {', '.join(dict.fromkeys(reasons))}")


def _attempt(files: Files, folder: Path, report_data: bytes, vmpl: int | None) -> tuple[bytes, bytes | None]:
    entry = folder / f"privbench-{uuid.uuid4().hex}"
    try:
        files.mkdir(entry)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise Unavailable("no such folder") from None
        if error.errno == errno.ENXIO:
            raise Unavailable("no provider is registered") from None
        raise _fault("mkdir", error) from None
    try:
        return _ask(files, entry, report_data, vmpl)
    finally:
        # An entry that another process removed, or keeps open, takes nothing away from the report.
        with contextlib.suppress(OSError):
            files.rmdir(entry)


def _ask(files: Files, entry: Path, report_data: bytes, vmpl: int | None) -> tuple[bytes, bytes | None]:
    provider = _read(files, entry, "provider").rstrip(b"\n").decode("ascii", "backslashreplace")
    if provider != PROVIDER:
        raise Unavailable(f"the provider is {provider!r}, not {PROVIDER!r}")
    expected = _generation(files, entry)
    if vmpl is not None:
        _write_level(files, entry, vmpl)
        expected += 1
    _write(files, entry, "inblob", report_data)
    # The kernel drops the result of what happens at the closing of inblob: this is how a refused write shows.
    _unmoved(files, entry, expected + 1, "after writing")
    raw, again = _read(files, entry, "outblob"), _read(files, entry, "outblob")
    table = _table(files, entry)
    _unmoved(files, entry, expected + 1, "after reading")
    if raw != again:
        raise _Torn("outblob changed between two reads")
    try:
        found = parse(raw).report_data
    except Malformed as error:
        raise _Torn(f"outblob: {error}") from None
    if found != report_data:
        raise _Torn("outblob: REPORT_DATA isn't what was written")
    if table and _cut(table):
        raise _Torn(f"auxblob: {len(table)} bytes, cut short")
    return raw, table or None


def _write_level(files: Files, entry: Path, vmpl: int) -> None:
    try:
        _write(files, entry, "privlevel", str(vmpl).encode())
    except Unavailable as error:
        floor = ""
        with contextlib.suppress(Unavailable, _Torn):
            lowest = _read(files, entry, "privlevel_floor").strip().decode("ascii", "backslashreplace")
            floor = f", the lowest that this guest can ask for is {lowest}"
        raise Unavailable(f"vmpl={vmpl}: {error}{floor}") from None


def _generation(files: Files, entry: Path) -> int:
    raw = _read(files, entry, "generation")
    if not raw.strip().isdigit():
        raise _Torn(f"generation is {raw!r}, not a number")
    return int(raw)


def _unmoved(files: Files, entry: Path, expected: int, when: str) -> None:
    found = _generation(files, entry)
    if found != expected:
        raise _Torn(f"generation {found} {when}, {expected} is due: another writer, or a write that was dropped")


def _table(files: Files, entry: Path) -> bytes:
    try:
        return files.read(entry / "auxblob")
    except FileNotFoundError:
        # Whether a provider shows it is its own affair. Where the whole entry has gone, generation is missing next.
        return b""
    except OSError as error:
        raise _fault("auxblob", error) from None


def _read(files: Files, entry: Path, name: str) -> bytes:
    try:
        return files.read(entry / name)
    except OSError as error:
        raise _fault(name, error) from None


def _write(files: Files, entry: Path, name: str, raw: bytes) -> None:
    try:
        taken = files.write(entry / name, raw)
    except OSError as error:
        raise _fault(name, error) from None
    if taken != len(raw):
        raise _Torn(f"{name}: {taken} of {len(raw)} bytes were taken")


def _fault(name: str, error: OSError) -> Exception:
    reason = f"{name}: {error.strerror or error}"
    return _Torn(reason) if error.errno in _AGAIN else Unavailable(reason)


def _cut(table: bytes) -> bool:
    """Whether a certificate table ends before its entries do. What else is wrong with it, the verifier says."""
    for at in range(0, len(table) - _ENTRY.size + 1, _ENTRY.size):
        guid, offset, length = _ENTRY.unpack_from(table, at)
        if not any(guid):
            return False
        if offset + length > len(table):
            return True
    return True
