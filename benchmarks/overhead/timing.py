"""Timing one case: warm-up, repeats until a rule that was stated beforehand says stop, each repeat's raw times kept."""

import gc
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from privbench.benchmarks.conform import require
from privbench.benchmarks.overhead import load
from privbench.benchmarks.overhead.workloads.workload import Case, Steps, Unavailable

LEAST = 3
"""Repeats that are taken however long they last."""

FAILED = "it failed: "
"""How the reason begins where a case was to run and didn't."""

NOTHING: dict[str, Any] = {"wall_ns": [], "cpu_ns": [], "start_ns": [], "stopped": None, "load": None}


@dataclass(frozen=True)
class StopRule:
    """When a case has been measured: after ``repeats``, or after ``seconds`` of repeats if that comes first.

    The rule looks at no result: one that stopped when the numbers look good would bias them.

    Args:
        repeats: 3 or more.
        seconds: of repeats, without warm-up and what lies between; at least 3 repeats are taken in any case.
        warmup: repeats before the first that counts.
    """

    repeats: int = 10
    seconds: float = 10.0
    warmup: int = 2

    def __post_init__(self) -> None:
        require(LEAST <= self.repeats <= 10_000, "repeats", self.repeats, f"{LEAST} to 10000")
        require(0 < self.seconds <= 86_400, "seconds", self.seconds, "more than 0, at most 86400")
        require(0 <= self.warmup <= 1000, "warmup", self.warmup, "0 to 1000")


@contextmanager
def pinned(cpus: Sequence[int]) -> Iterator[None]:
    """All threads of this process on ``cpus`` alone, and afterwards where they were; new ones inherit it."""
    before = {thread: os.sched_getaffinity(thread) for thread in _threads()}
    _move({thread: set(cpus) for thread in before})
    try:
        yield
    finally:
        _move(before)
        allowed = before[min(before)]
        _move({thread: allowed for thread in _threads() if thread not in before})


def _threads() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/task")]


def _move(where: dict[int, set[int]]) -> None:
    for thread, cpus in where.items():
        with suppress(ProcessLookupError):  # it ended meanwhile
            os.sched_setaffinity(thread, cpus)


def take(case: Case, rule: StopRule, cpus: Sequence[int], origin: int) -> dict[str, Any]:
    """Times of one case: what of the schema's measurement comes of running it.

    Args:
        cpus: that it may use; it is pinned to as many of the last ones as it has threads. Interrupts mostly go to the
            first.
        origin: ``perf_counter_ns`` at which the record began.
    """
    import torch

    threads = torch.get_num_threads()
    if case.threads > len(cpus):
        reason = f"it needs {case.threads} processors, and {len(cpus)} may be used"
        return {"status": "unavailable", "reason": reason, **NOTHING}
    try:
        with pinned(cpus[-case.threads :]):
            torch.set_num_threads(case.threads)
            with case.open() as steps, _quiet():
                return {"status": "measured", "reason": None, **_repeats(steps, rule, origin)}
    except Unavailable as error:
        return {"status": "unavailable", "reason": str(error) or "no reason was given", **NOTHING}
    except Exception as error:  # a full disk, too little memory, whatever a workload of the user's raises
        said = " ".join(f"{FAILED}{type(error).__name__}: {error}".split())[:500]
        return {"status": "unavailable", "reason": said, **NOTHING}
    finally:
        torch.set_num_threads(threads)


def _repeats(steps: Steps, rule: StopRule, origin: int) -> dict[str, Any]:
    for _ in range(rule.warmup):
        _once(steps)
    taken: list[tuple[int, int, int]] = []
    before, budget = load.read(), int(rule.seconds * 1e9)
    while len(taken) < rule.repeats and (len(taken) < LEAST or sum(t[0] for t in taken) < budget):
        taken.append(_once(steps))
    wall, cpu, start = zip(*taken, strict=True)
    return {
        "wall_ns": [*wall],
        "cpu_ns": [*cpu],
        "start_ns": [s - origin for s in start],
        "stopped": "repeats" if len(taken) == rule.repeats else "seconds",
        "load": load.between(before, load.read()),
    }


def _once(steps: Steps) -> tuple[int, int, int]:
    """Wall and processor nanoseconds of one repeat, and when it began; what goes before and after isn't timed."""
    steps.before()
    run, clock = steps.run, time.perf_counter_ns
    cpu, start = load.own_ns(), clock()
    run()
    end = clock()
    spent = load.own_ns() - cpu
    steps.after()
    return max(1, end - start), spent, start


@contextmanager
def _quiet() -> Iterator[None]:
    """No collection of garbage inside a repeat: it would fall on some of them alone."""
    gc.collect()
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
