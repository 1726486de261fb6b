"""A guest that isn't one: configfs-tsm, /dev/sev-guest and AMD's key service, as their sources and documents say."""

import ctypes
import errno
import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from privbench.defenses.tee.platforms import configfs, device, keyservice
from privbench.defenses.tee.table import GUIDS

GENOA = "genoa-v3-tsm-certtable-veraison"
Reply = Callable[[bytes, int], tuple[bytes, bytes]]


def fault(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def make_table(**entries: bytes) -> bytes:
    """A certificate table (GHCB 2.03, MSG_REPORT_REQ)."""
    guids = {name: guid.bytes for guid, name in GUIDS.items()}
    head, data, start = b"", b"", 24 * (len(entries) + 1)
    for name, raw in entries.items():
        head += struct.pack("<16sII", guids[name], start + len(data), len(raw))
        data += raw
    return head + bytes(24) + data


@dataclass
class Entry:
    """One report entry. ``written`` and ``read`` are the kernel's write_generation and read_generation."""

    inblob: bytes = b""
    level: int = 0
    written: int = 0
    read: int = 0
    blobs: tuple[bytes, bytes] | None = None


@dataclass
class TSM(configfs.Files):
    """drivers/virt/coco/tsm.c with the provider of sev-guest.c, behind fs/configfs/file.c.

    ``reply`` is the firmware: what it answers for 64 bytes and a privilege level, report and table, or an OSError.
    ``meddle`` runs before each operation on an entry, with its kind and the attribute's name.
    """

    reply: Reply
    provider: str = "sev_guest"
    floor: int = 0
    present: bool = True
    dropped: int = 0
    meddle: Callable[[str, str, Entry], None] = lambda *_: None
    folder: Path = Path("/sys/kernel/config/tsm/report")
    entries: dict[Path, Entry] = field(default_factory=dict)
    made: list[Path] = field(default_factory=list)

    def mkdir(self, path: Path) -> None:
        if not self.present or path.parent != self.folder:
            raise fault(errno.ENOENT)
        if not self.provider:
            raise fault(errno.ENXIO)
        if path in self.made:
            raise fault(errno.EEXIST)
        self.made.append(path)
        self.entries[path] = Entry()

    def rmdir(self, path: Path) -> None:
        if self.entries.pop(path, None) is None:
            raise fault(errno.ENOENT)

    def read(self, path: Path) -> bytes:
        entry = self._entry("read", path)
        if path.name in ("provider", "generation", "privlevel_floor"):
            shown = {"provider": self.provider, "generation": entry.written, "privlevel_floor": self.floor}
            return f"{shown[path.name]}\n".encode()
        if path.name not in ("outblob", "auxblob"):
            raise fault(errno.EACCES)
        if not entry.inblob:
            raise fault(errno.EINVAL)
        if entry.blobs is None or entry.read != entry.written:
            if len(entry.inblob) != 64:
                raise fault(errno.EINVAL)
            entry.blobs = self.reply(entry.inblob, entry.level)
            entry.read = entry.written
        return entry.blobs[path.name == "auxblob"]

    def write(self, path: Path, raw: bytes) -> int:
        entry = self._entry("write", path)
        if path.name == "inblob":
            if len(raw) > 64:
                raise fault(errno.EFBIG)
            if self.dropped:
                self.dropped -= 1
                return len(raw)
            entry.inblob = raw
        elif path.name == "privlevel":
            if not self.floor <= int(raw) <= 3:
                raise fault(errno.EINVAL)
            entry.level = int(raw)
        else:
            raise fault(errno.EACCES)
        entry.written += 1
        return len(raw)

    def _entry(self, kind: str, path: Path) -> Entry:
        if path.parent in self.entries:
            self.meddle(kind, path.name, self.entries[path.parent])
        if path.parent not in self.entries:
            raise fault(errno.ENOENT)
        return self.entries[path.parent]


@dataclass
class Device:
    """The ioctls of drivers/virt/coco/sev-guest/sev-guest.c, on the memory at the addresses they are given.

    ``script`` holds what happens to each request in turn: an errno, ``(errno, host error)``, ``(errno, host error,
    firmware error)`` or None for an answer; when it has run out, all are answered.
    """

    reply: Reply
    script: list[Any] = field(default_factory=list)
    status: int = 0
    size: int = 1184
    extended: bool = True
    asked: list[tuple[int, bytes, int, int]] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)

    def ioctl(self, _: int, code: int, message: device.Message) -> int:
        request = device.ExtendedRequest if code == device.GET_EXT_REPORT else device.ReportRequest
        # No copy: what the kernel writes here, the caller sees.
        given = request.from_address(message.req_data)
        plain = given.data if isinstance(given, device.ExtendedRequest) else given
        room = given.certs_len if isinstance(given, device.ExtendedRequest) else 0
        self.asked.append((code, bytes(plain.user_data), plain.vmpl, room))
        if message.msg_version != 1 or any(plain.rsvd):
            raise fault(errno.EINVAL)
        if isinstance(given, device.ExtendedRequest) and not self.extended:
            message.exitinfo2 = 0xFF
            raise fault(errno.ENOTTY)
        if self.script and (step := self.script.pop(0)) is not None:
            number, host, firmware = (*(step if isinstance(step, tuple) else (step,)), 0, 0)[:3]
            message.exitinfo2 = host << 32 | firmware
            raise fault(number)
        report, table = self.reply(bytes(plain.user_data), plain.vmpl)
        if isinstance(given, device.ExtendedRequest):
            if len(table) > given.certs_len:
                message.exitinfo2 = device.INVALID_LEN << 32
                given.certs_len = -(-len(table) // 4096) * 4096
                raise fault(errno.EIO)
            ctypes.memmove(given.certs_address, table.ljust(given.certs_len, b"\0"), given.certs_len)
        data = struct.pack("<II24x", self.status, self.size) + report
        ctypes.memmove(message.resp_data, data.ljust(4000, b"\0"), 4000)
        return 0


@dataclass
class Service:
    """AMD's key service: answers by URL, the last of which is repeated; 404 for all else."""

    pages: dict[str, list[keyservice.Answer]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)

    def fetch(self, url: str) -> keyservice.Answer:
        self.asked.append(url)
        answers = self.pages.get(url, [keyservice.Answer(404)])
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def put(self, url: str, body: bytes) -> None:
        self.pages[url] = [keyservice.Answer(200, body)]


@pytest.fixture
def tsm() -> type[TSM]:
    return TSM


@pytest.fixture
def attach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Device], Path]:
    """Puts a device behind a path."""

    def put(made: Device) -> Path:
        path = tmp_path / "sev-guest"
        path.touch()
        monkeypatch.setattr(device, "ioctl", made.ioctl)
        monkeypatch.setattr(device, "sleep", made.slept.append)
        return path

    return put


@pytest.fixture
def sev_guest() -> type[Device]:
    return Device


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    """The key service in place of the real one; without pages it has nothing."""
    made = Service()
    monkeypatch.setattr(keyservice, "fetch", made.fetch)
    monkeypatch.setattr(keyservice, "sleep", made.slept.append)
    return made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configfs, "PAUSE", 0)


@pytest.fixture
def table() -> Callable[..., bytes]:
    return make_table


@pytest.fixture
def genoa() -> Any:
    """The real pair of outblob and auxblob from a Genoa guest; skipped where it isn't at hand."""
    data = os.environ.get("PRIVBENCH_DATA")
    folder = Path(data).parent / "snp" / GENOA if data else None
    if folder is None or not folder.is_dir():
        pytest.skip(f"the attestation case {GENOA} isn't on this machine")
    return SimpleNamespace(
        outblob=(folder / "outblob.bin").read_bytes(),
        auxblob=(folder / "auxblob.bin").read_bytes(),
        chain=[(folder / f"{name}.der").read_bytes() for name in ("vcek", "ask", "ark")],
        report_data=bytes.fromhex(json.loads((folder / "manifest.json").read_text())["fields"]["report_data"]),
    )


@pytest.fixture
def guest(forge: Any) -> Callable[..., Any]:
    """A forged guest: ``reply`` for a simulation, ``leaf``, ``ask`` and ``ark``, one and the same for its life."""

    def make(**settings: Any) -> Any:
        fields = settings.pop("fields", {})
        made = forge(**settings)
        leaf, ask, ark = made.chain()

        def reply(inblob: bytes, level: int) -> tuple[bytes, bytes]:
            made.fields = {0x50: inblob, 0x30: struct.pack("<I", level), **fields}
            return made.report(), made.table

        made.leaf, made.ask, made.root, made.reply = leaf, ask, ark, reply
        made.table = make_table(ARK=ark, ASK=ask, **{made.kind: leaf})
        return made

    return make
