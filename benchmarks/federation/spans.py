"""Spans: what the parts of a round took, one within another, in every process that has a part in it.

Switched off, which is where it starts, a span is one comparison. Clocks are ``perf_counter_ns``, which processes of one
Linux machine share, and the CPU seconds of the process.
"""

import os
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, dataclass
from types import TracebackType
from typing import Any


@dataclass(frozen=True, slots=True)
class Span:
    """A part that is over.

    Args:
        name: of the part.
        process: in which it ran.
        client: whose turn it is, or -1.
        depth: how many spans it lies in, in its process.
        start: of the machine's monotonic clock, ns.
        wall, cpu: duration and CPU time, ns.
        own_wall, own_cpu: without the spans that lie in it.
    """

    name: str
    process: int
    client: int
    depth: int
    start: int
    wall: int
    cpu: int
    own_wall: int
    own_cpu: int


class _Recorder:
    """One process's spans: those that are over, and those that are open."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.over: list[Span] = []
        self.open: list[_Open] = []


class _Open:
    """A span that has begun."""

    __slots__ = ("_client", "_cpu", "_inner_cpu", "_inner_wall", "_name", "_recorder", "_start")

    def __init__(self, recorder: _Recorder, name: str, client: int):
        self._recorder, self._name, self._client = recorder, name, client
        self._inner_wall = self._inner_cpu = 0

    def __enter__(self) -> None:
        self._recorder.open.append(self)
        self._start, self._cpu = time.perf_counter_ns(), time.process_time_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        wall, cpu = time.perf_counter_ns() - self._start, time.process_time_ns() - self._cpu
        recorder, opened = self._recorder, self._recorder.open
        opened.pop()
        if opened:
            opened[-1]._inner_wall += wall
            opened[-1]._inner_cpu += cpu
        own = wall - self._inner_wall, cpu - self._inner_cpu
        made = Span(self._name, recorder.process, self._client, len(opened), self._start, wall, cpu, *own)
        recorder.over.append(made)


_OFF: AbstractContextManager[None] = nullcontext()
_recorder: _Recorder | None = None


def switch(on: bool) -> None:
    """Record from now on, in this process and those that it forks, or record no more."""
    global _recorder
    _recorder = _Recorder() if on else None


def recording() -> bool:
    """Whether spans are recorded."""
    return _recorder is not None


def span(name: str, client: int = -1) -> AbstractContextManager[None]:
    """A part of what this process does: ``with span("rule"): ...``. No ``yield`` may lie within it."""
    return _OFF if _recorder is None else _Open(_mine(), name, client)


def take() -> tuple[Span, ...]:
    """What is over and wasn't taken yet."""
    if _recorder is None:
        return ()
    mine = _mine()
    taken = tuple(mine.over)
    mine.over.clear()
    return taken


def adopt(others: Iterable[Span]) -> None:
    """Take in spans of another process."""
    if _recorder is not None:
        _mine().over.extend(others)


def plain(spans: Iterable[Span]) -> list[list[Any]]:
    """Spans as lists of text and numbers."""
    return [[*astuple(one)] for one in spans]


def read(lists: Iterable[Iterable[Any]]) -> tuple[Span, ...]:
    """What :func:`plain` wrote."""
    return tuple(Span(*one) for one in lists)


def _mine() -> _Recorder:
    """This process's own; a fork begins anew, without what its parent has recorded or left open."""
    global _recorder
    if _recorder is None or _recorder.process != os.getpid():
        _recorder = _Recorder()
    return _recorder
