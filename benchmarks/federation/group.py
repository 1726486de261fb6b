"""The ranks of a launch: they meet, rank 0 talks to each of the others, and who is gone is named."""

import os
import signal
import sys
import threading
import time
from queue import Empty, SimpleQueue
from typing import Any

from privbench.benchmarks.federation.launch import Launch
from privbench.benchmarks.federation.link import PULSES, Link, pack
from privbench.benchmarks.federation.meeting import RankLost, meet

GRACE = 1.0
"""Seconds in which, when a launcher ends this process, the rank may still be found whose end is why."""


class Group:
    """This process among its launch's ranks: rank 0 is linked to each of the others, they to rank 0.

    Args:
        launch: who this is.
        timeout: seconds without a sign of life after which a rank counts as gone.
        patience: seconds in which all have to come.

    Attributes:
        names: each rank's name for people: number and host.

    Raises:
        RankLost: naming who hasn't come.
    """

    def __init__(self, launch: Launch, timeout: float, patience: float):
        self.launch, self._timeout = launch, timeout
        self._inbox: SimpleQueue[tuple[int, Any]] = SimpleQueue()
        self._loss: str | None = None
        self._said = False
        hosts = meet(launch, timeout, patience)
        self.names = [f"rank {r} of {launch.world} ({host})" for r, host in enumerate(hosts)]
        self.others = range(1, launch.world) if launch.rank == 0 else range(1)
        self._links: dict[int, Link] = {}
        self._links |= {r: self._link(r) for r in self.others}
        if launch.rank:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's, for rank 0 to answer
        elif threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._terminated)

    def _link(self, peer: int) -> Link:
        def deliver(message: Any) -> None:
            self._inbox.put((peer, message))

        def ended(error: Exception | None) -> None:
            if self.launch.rank:
                # Whatever this process still computes, nobody is there to take it.
                if error is not None:
                    print(f"privbench: {self.names[self.launch.rank]}: {_gone(self.names[0], error)}", file=sys.stderr)
                leave_now(0 if error is None else 1)
            if error is not None:
                self._loss = self._loss or self._verdict(peer, error)
                deliver(None)

        return Link(peer, self._timeout / PULSES, deliver, ended)

    def post(self, message: Any, *ranks: int) -> None:
        """Send a message to ``ranks``, by default to all others, without waiting for it to arrive."""
        packed = pack(message)
        for rank in ranks or self.others:
            self._links[rank].post(packed)

    def take(self, patience: float | None = None) -> tuple[int, Any] | None:
        """The next message and its sender's rank; ``None`` if none comes in ``patience`` seconds.

        Raises:
            RankLost: if a rank is gone.
        """
        self.check()
        try:
            found = self._inbox.get(timeout=patience) if patience != 0 else self._inbox.get_nowait()
        except Empty:
            return None
        self.check()
        return found

    def check(self) -> None:
        """Raise :class:`RankLost` if a rank is gone."""
        if self._loss:
            self._said = True
            raise RankLost(self._loss)

    def _verdict(self, peer: int, error: Exception) -> str:
        """Who is gone when the connection to ``peer`` breaks."""
        # A wait that times out breaks every connection of the group: it is the silent one's fault.
        silence = {r: time.monotonic() - link.heard for r, link in self._links.items()}
        longest = max(silence, key=lambda r: silence[r], default=peer)
        if silence.get(longest, 0) < self._timeout / 2:
            return _gone(self.names[peer], error)
        return f"{self.names[longest]} is gone: no sign of life for {self._timeout:g} s (federation.engine.timeout)"

    def close(self) -> None:
        """Part from all ranks that are still there. Safe to call twice."""
        for link in self._links.values():
            link.close(0 if self._loss else self._timeout)
        self.others, self._links = range(0), {}

    @property
    def lost(self) -> bool:
        """Whether a rank is gone: threads then wait for it, and this process can't end by itself."""
        return self._loss is not None

    def _terminated(self, *_: Any) -> None:
        """A launcher ends all ranks when it finds one dead, which is known here, too, or is about to be."""
        until = time.monotonic() + GRACE
        while not self._loss and time.monotonic() < until:
            time.sleep(GRACE / 100)
        if not self._loss:
            raise KeyboardInterrupt
        if not self._said:
            self.check()


def _gone(name: str, error: Exception) -> str:
    """Who is gone, and what was seen of it."""
    text = " ".join(str(error).split())
    closed = "closed by peer" in text.lower() or "reset by peer" in text.lower()
    why = "its process ended (killed, or out of memory)" if closed else text
    return f"{name} is gone: {why}"


def leave_now(status: int) -> None:
    """End the process without waiting for threads that wait for other ranks."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
