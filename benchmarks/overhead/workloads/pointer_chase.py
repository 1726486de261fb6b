"""Latency of a load that needs the one before it, by working set, from the first cache to memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from privbench.benchmarks.conform import require
from privbench.benchmarks.overhead.workloads.native import chaser
from privbench.benchmarks.overhead.workloads.pages import HUGE_OFF, words
from privbench.benchmarks.overhead.workloads.workload import Bench, Case, Steps

LINE = 64
"""Bytes of a cache line: one pointer in each."""


@dataclass(frozen=True)
class PointerChase:
    """A random cycle through all lines of a working set, which no prefetcher can guess.

    Args:
        kilobytes: KiB of each working set. The sizes are the same on every machine, so that records can be compared:
            they should reach from below the first data cache to beyond the last.
        steps: loads a repeat.
        ablations: the same without huge pages, where address translation costs most: for the largest set.
        seed: of the cycle.
    """

    kilobytes: tuple[int, ...] = (16, 256, 4096, 32768, 131072)
    steps: int = 2_000_000
    ablations: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        fits = bool(self.kilobytes) and all(1 <= k <= 2**24 for k in self.kilobytes)
        require(fits, "kilobytes", self.kilobytes, "working sets of 1 to 16777216 KiB")
        distinct = len(set(self.kilobytes)) == len(self.kilobytes)
        require(distinct, "kilobytes", self.kilobytes, "each working set once")
        require(self.steps >= 1, "steps", self.steps, "1 or more")
        require(0 <= self.seed < 2**63, "seed", self.seed, "0 to 2^63 - 1")

    def cases(self, bench: Bench) -> Iterator[Case]:
        for size in self.kilobytes:
            yield self._case(bench, size, huge=True)
        if self.ablations:
            yield self._case(bench, max(self.kilobytes), huge=False)

    def _case(self, bench: Bench, kilobytes: int, huge: bool) -> Case:
        return Case(
            name=f"{kilobytes}KiB",
            open=lambda: self._open(kilobytes * 1024, huge),
            amount=1,
            unit="loads",
            calls=self.steps,
            shared=kilobytes * 1024 > bench.caches.get(2, 0),
            ablation=None if huge else HUGE_OFF,
        )

    @contextmanager
    def _open(self, size: int, huge: bool) -> Iterator[Steps]:
        with chaser() as chase, words(size, huge) as memory:
            base = cycle(memory, self.seed)
            yield Steps(lambda: chase(base, self.steps))
            del memory


def cycle(memory: np.ndarray, seed: int) -> int:
    """Write one cycle through all lines of ``memory`` (``uint64``) into it; the address of the first."""
    base, stride = memory.ctypes.data, LINE // 8
    order = np.random.default_rng(seed).permutation(len(memory) // stride).astype(np.uint64)
    memory[order * stride] = base + LINE * np.roll(order, -1)
    return base
