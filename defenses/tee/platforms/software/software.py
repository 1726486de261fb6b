"""The host's handle of the software platform: start it, launch guests, end it."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing.connection import Client, Connection
from pathlib import Path
from socket import socketpair
from types import TracebackType
from typing import Any

from privbench.benchmarks.build import require
from privbench.defenses.tee import certificates
from privbench.defenses.tee.certificates import Certificate
from privbench.defenses.tee.platforms.platform import Unavailable
from privbench.defenses.tee.wire import pack, unpack

STARTING = 60.0
"""Seconds after which a guest that doesn't listen has failed."""


@dataclass(frozen=True)
class Guest:
    """A launched guest, seen from the host.

    Args:
        connection: to the socket on which the guest's program listens.
        measurement: 48 bytes, as the platform says; evidence says it again, signed.
        pid: the guest's process.
        socket: the path of that socket.
    """

    connection: Connection
    measurement: bytes
    pid: int
    socket: str


@dataclass(frozen=True)
class Launch:
    """What to launch, as :meth:`Software.launch` takes it."""

    program: str
    host_data: bytes = bytes(32)
    chip: str = "host"
    patches: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.program.startswith("privbench."), "program", self.program, "a function below privbench.")
        require(len(self.host_data) == 32, "host_data", self.host_data.hex(), "32 bytes")


class Software:
    """A software platform for one run, in a process of its own. Use as a context manager."""

    name = "software"

    def __init__(self) -> None:
        # 0700: sockets of guests, and the code that they run. The manufacturer removes it too: one of us may be killed.
        self._folder = tempfile.TemporaryDirectory(prefix="privbench-software-tee-", ignore_cleanup_errors=True)
        here, there = socketpair()
        module = f"{__package__}.manufacturer"
        command = [sys.executable, "-P", "-B", "-m", module, str(there.fileno()), self._folder.name]
        self._process = subprocess.Popen(command, pass_fds=(there.fileno(),), stdin=subprocess.DEVNULL)
        there.close()
        self._control = Connection(here.detach())
        self._launches = 0
        self._connections: list[Connection] = []

    @cached_property
    def root(self) -> Certificate:
        """The certificate of its root key, made for this platform and gone with it.

        Raises:
            Unavailable: the platform has ended.
        """
        return certificates.load(self._ask({"request": "root"})["root"])[0]

    def launch(
        self, program: str, host_data: bytes = bytes(32), chip: str = "host", patches: Mapping[str, bytes] | None = None
    ) -> Guest:
        """Start ``program`` in a guest and connect to it.

        Args:
            program: ``module:function`` of this package, called with the guest's platform and a socket's path.
            host_data: 32 bytes for HOST_DATA.
            chip: guests of one name share a processor.
            patches: files of the suite to replace, by path below ``privbench/``: a host that tampers. They are
                measured like the rest.

        Raises:
            Unavailable: the platform or the guest ended, with the guest's last words.
        """
        return self.launch_several([Launch(program, host_data, chip, patches or {})])[0]

    def launch_several(self, launches: Sequence[Launch]) -> list[Guest]:
        """Guests that start at the same time; otherwise as :meth:`launch`."""
        started = [self._start(launch) for launch in launches]
        guests = []
        for socket, answer in started:
            connection = _connect(socket, answer["pid"])
            self._connections.append(connection)
            guests.append(Guest(connection, answer["measurement"], answer["pid"], socket))
        return guests

    def _start(self, launch: Launch) -> tuple[str, dict[str, Any]]:
        self._launches += 1
        socket = str(Path(self._folder.name) / str(self._launches))
        request = {**launch.__dict__, "patches": dict(launch.patches)}
        return socket, self._ask({"request": "launch", **request, "socket": socket})

    def close(self) -> None:
        """End the platform, its guests and its keys. Safe to call twice."""
        for connection in (*self._connections, self._control):
            connection.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def __enter__(self) -> "Software":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            self._control.send_bytes(pack(request))
            return unpack(self._control.recv_bytes())
        except (EOFError, OSError):
            raise Unavailable("the software platform's manufacturer process has ended") from None


def _connect(socket: str, pid: int) -> Connection:
    deadline = time.monotonic() + STARTING
    while time.monotonic() < deadline:
        try:
            return Client(socket, "AF_UNIX")
        except (FileNotFoundError, ConnectionRefusedError):
            if not alive(pid):
                raise Unavailable(f"the guest ended before it listened: {last_words(socket)}") from None
            time.sleep(0.01)
    raise Unavailable(f"the guest did not listen within {STARTING:.0f} s")


def last_words(socket: str) -> str:
    """The last line that a guest wrote to standard error, empty if none."""
    try:
        written = Path(f"{socket}.log").read_text(errors="replace").strip().splitlines()
    except FileNotFoundError:
        return ""
    return written[-1] if written else ""


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie, which its parent hasn't waited for yet, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
