"""The other side of a platform: something that launches programs where they can ask for evidence."""

import os
import signal
import socket as sockets
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Protocol

from privbench.benchmarks.build import require
from privbench.defenses.tee.certificates import Certificate
from privbench.defenses.tee.platforms.platform import Unavailable

STARTING = 60.0
"""Seconds after which a guest that doesn't listen has failed."""

ENDING = 5.0
"""Seconds that one waits for a guest to end."""


@dataclass(frozen=True)
class Guest:
    """A launched program, seen from its host.

    Args:
        connection: to the socket on which the program listens.
        measurement: 48 bytes, as the host says; evidence says it again, signed.
        pid: its process.
        socket: the path of that socket.
    """

    connection: Connection
    measurement: bytes
    pid: int
    socket: str


@dataclass(frozen=True)
class Launch:
    """What to launch.

    Args:
        program: ``module:function`` of this package, called with its platform and a socket's path.
        host_data: 32 bytes for HOST_DATA, where the host can set it.
        chip: guests of one name share a processor, where the host emulates several.
        patches: files of the suite to replace, by path below ``privbench/``: a host that tampers.
    """

    program: str
    host_data: bytes = bytes(32)
    chip: str = "host"
    patches: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.program.startswith("privbench."), "program", self.program, "a function below privbench.")
        require(len(self.host_data) == 32, "host_data", self.host_data.hex(), "32 bytes")


class Host(Protocol):
    """Attributes:
    root: the root of a platform that makes its own; ``None`` where AMD's pinned keys are it.
    """

    @property
    def root(self) -> Certificate | None: ...

    def measurement(self, program: str) -> bytes:
        """What its launch will be measured as, 48 bytes."""
        ...

    def launch_several(self, launches: Sequence[Launch]) -> list[Guest]:
        """Programs that start at the same time, connected.

        Raises:
            Unavailable: one ended before it listened, with its last words.
        """
        ...

    def close(self) -> None:
        """End what was launched. Safe to call twice."""
        ...


def connect(socket: str, pid: int) -> Connection:
    """Connect to a program that was just started.

    Raises:
        Unavailable: it ended, or doesn't listen in time.
    """
    deadline = time.monotonic() + STARTING
    while time.monotonic() < deadline:
        try:
            return Client(socket, "AF_UNIX")
        except (FileNotFoundError, ConnectionRefusedError):
            if not alive(pid):
                raise Unavailable(f"the guest ended before it listened: {last_words(socket)}") from None
            time.sleep(0.01)
    raise Unavailable(f"the guest did not listen within {STARTING:.0f} s")


def hurry(connection: Connection, patience: float) -> None:
    """Let no read or write on ``connection`` block for longer than ``patience`` seconds: it raises ``BlockingIOError``.

    A write may take twice that, if some bytes went through.
    """
    seconds, rest = divmod(patience, 1)
    most = struct.pack("ll", int(seconds), int(rest * 1e6) if seconds else max(1, int(rest * 1e6)))
    # Of a copy of the descriptor: the limits are the socket's, and the connection's own stays open.
    with sockets.socket(fileno=os.dup(connection.fileno())) as socket:
        for which in (sockets.SO_SNDTIMEO, sockets.SO_RCVTIMEO):
            socket.setsockopt(sockets.SOL_SOCKET, which, most)


def end(pid: int) -> None:
    """End a guest that doesn't answer, and wait until it has ended; one that has ended is left as it is."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait(pid)


def wait(pid: int) -> None:
    """Wait until a guest that is ending has ended, ``ENDING`` seconds at most.

    A process closes its sockets before it counts as dead: a guest that can't be reached may still pass for alive.
    """
    deadline = time.monotonic() + ENDING
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.001)


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
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
