"""The host's handle of the software platform: start it, launch guests, end it."""

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socketpair
from types import TracebackType
from typing import Any

from privbench.defenses.tee import certificates
from privbench.defenses.tee.certificates import Certificate
from privbench.defenses.tee.platforms.host import Guest, Launch, connect
from privbench.defenses.tee.platforms.platform import Unavailable
from privbench.defenses.tee.platforms.software import code
from privbench.defenses.tee.platforms.software.nursery import admitted
from privbench.defenses.tee.wire import pack, unpack


class Software:
    """A software platform for one run, in a process of its own. Use as a context manager."""

    name = "software"

    def __init__(self) -> None:
        # 0700: sockets of guests, and the code that they run. The manufacturer removes it too: one of us may be killed.
        self._folder = tempfile.TemporaryDirectory(prefix="privbench-software-tee-", ignore_cleanup_errors=True)
        here, there = socketpair()
        module = f"{__package__}.manufacturer"
        with there, admitted() as nursery:
            fds = (there.fileno(), nursery.fileno())
            command = [sys.executable, "-P", "-B", "-m", module, str(fds[0]), self._folder.name, str(fds[1])]
            self._process = subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL)
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

    def measurement(self, program: str) -> bytes:
        """Of the installed code, started at ``program``."""
        return code.expected(program)

    def launch(
        self, program: str, host_data: bytes = bytes(32), chip: str = "host", patches: Mapping[str, bytes] | None = None
    ) -> Guest:
        """Start ``program`` in a guest and connect to it; the arguments are :class:`Launch`'s. Patches are measured
        like the rest.

        Raises:
            Unavailable: the platform or the guest ended, with the guest's last words.
        """
        return self.launch_several([Launch(program, host_data, chip, patches or {})])[0]

    def launch_several(self, launches: Sequence[Launch]) -> list[Guest]:
        """Guests that start at the same time; otherwise as :meth:`launch`."""
        started = [self._start(launch) for launch in launches]
        guests = []
        for socket, answer in started:
            connection = connect(socket, answer["pid"])
            self._connections.append(connection)
            guests.append(Guest(connection, answer["measurement"], answer["pid"], socket))
        return guests

    def _start(self, launch: Launch) -> tuple[str, dict[str, Any]]:
        self._launches += 1
        socket = str(Path(self._folder.name) / str(self._launches))
        request = {**launch.__dict__, "patches": dict(launch.patches)}
        answer = self._ask({"request": "launch", **request, "socket": socket})
        if "error" in answer:
            raise Unavailable(answer["error"])
        return socket, answer

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
