"""What runs inside: the guest's way to its firmware, and the program that was launched."""

import importlib
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from privbench.defenses.tee.platforms.platform import Evidence, Platform, Unavailable
from privbench.defenses.tee.platforms.software import code
from privbench.defenses.tee.wire import pack, unpack

LARGEST = 1 << 20

Program = Callable[[Platform, str], None]
"""Takes the platform and the path of the socket to listen on; returns when it is done."""


class Firmware:
    """The software platform, seen from a guest. It reports on the guest that asks, as it was launched."""

    name = "software"

    def __init__(self, connection: Connection):
        self._connection = connection

    def evidence(self, report_data: bytes) -> Evidence:
        try:
            self._connection.send_bytes(pack({"report_data": report_data}))
            answer: dict[str, Any] = unpack(self._connection.recv_bytes(LARGEST))
        except (OSError, EOFError) as error:
            raise Unavailable(f"the software platform is gone: {type(error).__name__}") from None
        if "error" in answer:
            raise Unavailable(answer["error"])
        return Evidence(answer["report"], tuple(answer["certificates"]))


def main(folder: str, firmware: str, program: str, socket: str) -> None:
    """Run ``program`` (``module:function``) with this guest's platform."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the host, which ends guests itself
    module, _, function = program.partition(":")
    run: Program = getattr(importlib.import_module(module), function)
    loaded = [(name, getattr(m, "__file__", None)) for name, m in list(sys.modules.items())]
    if strange := code.outside(Path(folder), loaded):
        raise SystemExit(f"loaded from elsewhere than the measured code: {', '.join(strange)}")
    run(Firmware(Connection(int(firmware))), socket)
