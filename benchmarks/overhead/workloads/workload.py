"""The interface of workloads."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Unavailable(RuntimeError):
    """This case can't run here, and why."""


def nothing() -> None:
    """A step that there isn't."""


@dataclass(frozen=True)
class Steps:
    """One repeat.

    Args:
        run: what is timed.
        before, after: what has to be done around each repeat and isn't timed.
    """

    run: Callable[[], object]
    before: Callable[[], object] = nothing
    after: Callable[[], object] = nothing


@dataclass(frozen=True)
class Case:
    """One thing to time.

    Args:
        name: unlike any other of its workload, but for the same under an ablation.
        open: makes it ready, yields the steps of a repeat, cleans up. Raises :class:`Unavailable` where it can't run.
        amount, unit: the work of one call.
        calls: in one repeat.
        threads: that compute.
        shared: its time depends on caches or memory that other processes use as well.
        ablation: what was taken away or added on purpose, in words; ``None`` for the case itself.
        doubts: what is known beforehand to limit what it says.
    """

    name: str
    open: Callable[[], AbstractContextManager[Steps]]
    amount: float = 1
    unit: str = "calls"
    calls: int = 1
    threads: int = 1
    shared: bool = False
    ablation: str | None = None
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bench:
    """Where workloads run.

    Args:
        scratch: a folder for files; those of a workload are gone after it.
        cpus: processors that may be used.
        caches: bytes of the data caches by level, as far as the kernel lists them.
        filesystem: the kind of the one that ``scratch`` is on, if it is known.
    """

    scratch: Path
    cpus: tuple[int, ...]
    caches: dict[int, int]
    filesystem: str | None = None


class Workload(Protocol):
    """A frozen dataclass whose fields are its sizes: equal fields, equal work, on any machine."""

    def cases(self, bench: Bench) -> Iterable[Case]:
        """Its cases. They are opened one after another, each when the one before it is cleaned up."""
        ...
