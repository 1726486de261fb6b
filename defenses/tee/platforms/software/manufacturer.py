"""The process that makes the root key, measures code, launches it, and signs reports for what it launched.

It is started with one end of a socket pair, over which its parent can ask for a launch and nothing else. Each guest
gets a socket of its own to ask for reports: a report is always about the guest that asks, and its measurement is that
of the bytes that were loaded. No private key is ever written; all of them end with the process, which ends with its
parent.
"""

import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from socket import socket, socketpair
from typing import Any

from privbench.defenses.tee.platforms.software import code
from privbench.defenses.tee.platforms.software.authority import Authority, Chip
from privbench.defenses.tee.platforms.software.firmware import Launched, evidence
from privbench.defenses.tee.platforms.software.nursery import Guests
from privbench.defenses.tee.report import Malformed
from privbench.defenses.tee.wire import pack, unpack

LARGEST = 64 << 20
"""Bytes of a request: patched code, at the most."""


@dataclass
class _Guest:
    pid: int
    chip: str
    launched: Launched


class Manufacturer:
    """The state of the process.

    Args:
        control: the parent's socket.
        folder: for the code of guests, readable by this user alone.
        nursery: where guests come from.
    """

    def __init__(self, control: Connection, folder: Path, nursery: Guests):
        self._control, self._folder, self._nursery = control, folder, nursery
        # RSA keys take a second: guests start meanwhile, and whoever needs a signature waits.
        self._authority = ThreadPoolExecutor(1).submit(Authority)
        self._chips: dict[str, Chip] = {}
        self._guests: dict[Connection, _Guest] = {}

    def serve(self) -> None:
        """Answer until the parent is gone."""
        while True:
            for ready in wait([self._control, *self._guests]):
                assert isinstance(ready, Connection)
                try:
                    request = unpack(ready.recv_bytes(LARGEST))
                except (EOFError, OSError, Malformed):
                    if ready is self._control:
                        return
                    self._drop(ready)
                    continue
                answer = self._answer(request) if ready is self._control else self._report(ready, request)
                try:
                    ready.send_bytes(pack(answer))
                except OSError:
                    continue  # it has gone; the next turn notices

    def close(self) -> None:
        """End all guests."""
        for guest in self._guests.values():
            self._nursery.end(guest.pid)

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"root": self._authority.result().root} if request["request"] == "root" else self._launch(request)

    def _launch(self, request: dict[str, Any]) -> dict[str, Any]:
        files = code.installed() | request["patches"]
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        code.write(files, folder)
        here, there = socketpair()
        launched = Launched(code.measure(files, request["program"]), request["host_data"])
        with there, open(f"{request['socket']}.log", "wb") as log:
            arguments = [str(folder), request["program"], request["socket"]]
            try:
                pid = self._nursery.launch(arguments, there.fileno(), log.fileno())
            except OSError as error:
                here.close()
                return {"error": f"no guest can be started: {error}"}
        self._guests[Connection(here.detach())] = _Guest(pid, request["chip"], launched)
        return {"measurement": launched.measurement, "pid": pid}

    def _report(self, who: Connection, request: dict[str, Any]) -> dict[str, Any]:
        report_data = request.get("report_data")
        if not isinstance(report_data, bytes) or len(report_data) != 64:
            return {"error": "report_data: 64 bytes"}
        guest = self._guests[who]
        if guest.chip not in self._chips:
            self._chips[guest.chip] = self._authority.result().chip()
        made = evidence(self._chips[guest.chip], guest.launched, report_data)
        return {"report": made.report, "certificates": list(made.certificates)}

    def _drop(self, who: Connection) -> None:
        guest = self._guests.pop(who)
        who.close()
        self._nursery.end(guest.pid)


def main(control: int, folder: Path, nursery: int) -> None:
    """Entry of the process; ``folder`` is gone with it, unless it is killed: then its parent removes it."""
    os.umask(0o077)
    manufacturer = Manufacturer(Connection(control), folder, Guests(socket(fileno=nursery)))
    try:
        manufacturer.serve()
    finally:
        manufacturer.close()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    import signal

    # Ctrl-C is for the parent: it ends this process by closing the socket, after its own last words.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
