"""Programs beside this process, in the SEV-SNP guest that both run in.

The machine's owner is kept out of the guest; nothing but processes separates the programs inside from each other. So
evidence shows what was booted, this process included. The launch digest is the whole guest's.
"""

import ctypes
import importlib
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from privbench.benchmarks.build import require
from privbench.defenses.tee.platforms.host import Guest, Launch, connect
from privbench.defenses.tee.platforms.sev_snp import SEVSNP
from privbench.defenses.tee.report import parse

_PR_SET_PDEATHSIG = 1


class SameGuest:
    """The SEV-SNP guest that this process runs in, as a host of programs.

    Raises:
        Unavailable: this is no such guest, or a certificate is missing, with the reason.
    """

    root = None

    def __init__(self) -> None:
        # Asked before anything is launched: a machine without SEV-SNP, or without certificates, is refused here.
        self._measured = parse(SEVSNP().evidence(secrets.token_bytes(64)).report).measurement
        self._folder = tempfile.TemporaryDirectory(prefix="privbench-sev-snp-", ignore_cleanup_errors=True)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[Connection] = []

    def measurement(self, program: str) -> bytes:
        """The launch digest of this guest, whichever program."""
        return self._measured

    def launch_several(self, launches: Sequence[Launch]) -> list[Guest]:
        """Programs that start at the same time. HOST_DATA was set when this guest was launched, and isn't theirs.

        Raises:
            ConfigError: a launch with patched code.
            Unavailable: a program ended before it listened.
        """
        started = [self._start(launch) for launch in launches]
        guests = []
        for socket, process in started:
            connection = connect(socket, process.pid)
            self._connections.append(connection)
            guests.append(Guest(connection, self._measured, process.pid, socket))
        return guests

    def close(self) -> None:
        """End the programs. Safe to call twice."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes.clear()
        self._folder.cleanup()

    def _start(self, launch: Launch) -> tuple[str, subprocess.Popen[bytes]]:
        require(not launch.patches, "patches", sorted(launch.patches), "none: what runs here was measured at its boot")
        socket = str(Path(self._folder.name) / str(len(self._processes) + 1))
        command = [sys.executable, "-P", "-B", "-m", __name__, launch.program, socket]
        with open(f"{socket}.log", "wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
        self._processes.append(process)
        return socket, process


def main(program: str, socket: str) -> None:
    """Run ``program`` (``module:function``) with this guest's platform."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the host, which ends it itself
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    module, _, function = program.partition(":")
    getattr(importlib.import_module(module), function)(SEVSNP(), socket)


if __name__ == "__main__":
    main(*sys.argv[1:])
