"""What a run's processes take: CPU seconds, memory and bytes, as Linux counts them.

Elsewhere than on Linux, CPU seconds are the calling process's own, and memory isn't measured.
"""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from privbench.benchmarks.federation.spans import Span, adopt, span, take

if TYPE_CHECKING:
    from privbench.defenses.channel.message import Message

_PROC = Path("/proc")
_SHARED = "privbench-nurse"
"""Name of the process that guests of a software TEE are forked from. It outlives runs, and is none's."""


def processes(root: int | None = None) -> list[int]:
    """``root`` (this process) and all that it started, and they in turn, that are alive and of a run."""
    found = [os.getpid() if root is None else root]
    for pid in found:
        with suppress(OSError):
            for thread in (_PROC / str(pid) / "task").iterdir():
                with suppress(OSError):
                    found += map(int, (thread / "children").read_text().split())
    return [pid for pid in found if _name(pid) != _SHARED]


def _name(pid: int) -> str | None:
    with suppress(OSError):
        return (_PROC / str(pid) / "comm").read_text().strip()
    return None


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process since it started, all its threads together; 0 of one that is gone."""
    if pid == os.getpid():
        return time.process_time()
    with suppress(OSError):
        # The number of another process's clock, as Linux's clock_getcpuclockid(3) makes it.
        return time.clock_gettime((~pid << 3) | 2)
    return 0.0


def peak_memory(pid: int) -> int | None:
    """The largest resident set of a process so far or since :func:`forget_peak`, bytes; ``None`` if nobody knows."""
    with suppress(OSError):
        for line in (_PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return None


def forget_peak(pid: int) -> None:
    """Let :func:`peak_memory` start anew, where that is allowed."""
    with suppress(OSError):
        (_PROC / str(pid) / "clear_refs").write_text("5")  # proc(5)


@dataclass(frozen=True)
class Usage:
    """What one client's turns in a round took.

    Args:
        seconds: from its invitation to its message.
        cpu_seconds: of the process that ran it, and of its guest.
        memory: the largest resident set of that process meanwhile, and of its guest, bytes; ``None`` if nobody knows.
        sent, received: bytes.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    memory: int | None = None
    sent: int = 0
    received: int = 0

    def then(self, later: "Usage") -> "Usage":
        """This turn and a later one of the same client."""
        known = [m for m in (self.memory, later.memory) if m is not None]
        return Usage(
            self.seconds + later.seconds,
            self.cpu_seconds + later.cpu_seconds,
            max(known, default=None),
            self.sent + later.sent,
            self.received + later.received,
        )


class Stopwatch:
    """Measures this process from now on; its largest resident set, too.

    Attributes:
        before: the largest resident set until then, which is forgotten.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self.before = peak_memory(self._pid)
        forget_peak(self._pid)
        self._start, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> Usage:
        """Since it was made."""
        seconds, cpu = time.perf_counter() - self._start, time.process_time() - self._cpu
        return Usage(seconds, cpu, peak_memory(self._pid))


@dataclass(frozen=True)
class RoundUsage:
    """What a round took.

    Args:
        seconds: wall time by part: ``round``, ``clients`` (waiting for them), ``server`` (the rest).
        cpu_seconds: of this process and all that it started; not of ranks that run clients, too.
        memory: the largest resident sets of these processes in the round, added up, bytes: pages that they share count
            in each. ``None`` if nobody knows.
        clients: by client who sent anything.
        spans: its parts, of all processes; none where they aren't recorded.
    """

    seconds: Mapping[str, float]
    cpu_seconds: float
    memory: int | None
    clients: Mapping[int, Usage] = field(default_factory=dict)
    spans: tuple[Span, ...] = ()


class Meter:
    """Measures one round, from when it is made."""

    def __init__(self) -> None:
        self._cpu = {pid: cpu_seconds(pid) for pid in processes()}
        for pid in self._cpu:
            forget_peak(pid)
        self._peaks: dict[int, int] = {}
        self._clients: dict[int, Usage] = {}
        self._waited = 0.0
        take()  # what is over belongs to no round
        self._start = time.perf_counter()
        self._round = ExitStack()
        self._round.enter_context(span("round"))

    def waiting(self, source: Iterable["Message"]) -> Iterator["Message"]:
        """The messages; takes down what they say, and the time spent waiting for the next one."""
        messages = iter(source)
        while True:
            start = time.perf_counter()
            with span("waiting"):
                message = next(messages, None)
            self._waited += time.perf_counter() - start
            if message is None:
                return
            self._take(message)
            yield message

    def _take(self, message: "Message") -> None:
        turn = replace(message.usage, sent=message.size, received=message.received)
        self._clients[message.client] = self._clients.get(message.client, Usage()).then(turn)
        adopt(message.spans)
        pid, peak = message.process
        self._peaks[pid] = max(self._peaks.get(pid, 0), peak)

    def read(self) -> RoundUsage:
        """The round, which ends."""
        self._round.close()
        total = time.perf_counter() - self._start
        seconds = {"round": total, "clients": self._waited, "server": total - self._waited}
        alive = processes()
        cpu = sum(max(0.0, cpu_seconds(pid) - self._cpu.get(pid, 0.0)) for pid in alive)
        peaks = [max(self._peaks.get(pid, 0), peak_memory(pid) or 0) for pid in alive]
        return RoundUsage(seconds, cpu, sum(peaks) or None, dict(sorted(self._clients.items())), take())
