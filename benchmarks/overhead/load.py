"""What else the machine did while a workload ran: shares of its processor time from ``/proc/stat``."""

import os
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privbench.benchmarks.overhead import probe
from privbench.benchmarks.overhead.fingerprint import ROOT

COARSE = 20
"""Ticks of all processors, below which shares are too coarse to be stated."""


@dataclass(frozen=True)
class Reading:
    """Counters at one moment.

    Args:
        ticks: of all processors by kind, as ``/proc/stat`` has them (user, nice, system, idle, iowait, irq, softirq,
            steal); empty where it can't be read.
        own_ns: as :func:`own_ns`.
    """

    ticks: tuple[int, ...]
    own_ns: int


def read(root: Path = ROOT) -> Reading:
    """The counters now."""
    line = (probe.text(root, "proc/stat") or "").partition("\n")[0].split()
    ticks = tuple(map(int, line[1:9])) if line[:1] == ["cpu"] and len(line) >= 9 else ()
    return Reading(ticks, own_ns())


def own_ns() -> int:
    """Processor time of this process and of its children, of those that still run to a tick of the kernel's clock."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    waited = int(1e9 * (children.ru_utime + children.ru_stime))
    return time.process_time_ns() + waited + sum(map(_spent_ns, _descendants(os.getpid())))


def _descendants(process: int) -> Iterator[int]:
    """Processes that descend from one and still run, as far as the kernel lists them."""
    for tasks in probe.listed(Path(f"/proc/{process}"), "task", "*"):
        for child in map(int, (probe.text(tasks, "children") or "").split()):
            yield child
            yield from _descendants(child)


def _spent_ns(process: int) -> int:
    """Of a process and of the children that it waited for (proc(5): utime, stime, cutime, cstime)."""
    fields = (probe.text(Path("/proc"), f"{process}/stat") or "").rpartition(")")[2].split()
    return int(sum(map(int, fields[11:15])) * 1e9 / os.sysconf("SC_CLK_TCK"))


def between(before: Reading, after: Reading, root: Path = ROOT) -> dict[str, Any]:
    """The schema's ``load``: shares are ``None`` where nothing can be said."""
    average = (probe.text(root, "proc/loadavg") or "").split()[:3]
    shown = {"others": None, "steal": None, "loadavg": [float(a) for a in average] if len(average) == 3 else None}
    if not before.ticks or not after.ticks:
        return shown
    spent = [max(0, b - a) for a, b in zip(before.ticks, after.ticks, strict=True)]
    total = sum(spent)
    if total < COARSE:
        return shown
    own = (after.own_ns - before.own_ns) * os.sysconf("SC_CLK_TCK") / 1e9
    busy = total - spent[3] - spent[4] - spent[7]
    return {**shown, "others": min(1.0, max(0.0, (busy - own) / total)), "steal": spent[7] / total}
