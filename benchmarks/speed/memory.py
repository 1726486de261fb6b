"""By how much a call makes this process grow (Linux)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any


def grown(call: Callable[[], Any]) -> int:
    """KiB between this process's size now and its largest during ``call``."""
    # The largest size so far starts anew (proc(5)); that of getrusage is the parent's, too.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(f"{name}:"))
    return int(line.split()[1])
