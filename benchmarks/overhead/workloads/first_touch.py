"""The first write to each page of fresh memory: a fault, a zeroed page and, in a guest, what its host does for it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from privbench.benchmarks.conform import require
from privbench.benchmarks.overhead.workloads.pages import HUGE_OFF, mapped
from privbench.benchmarks.overhead.workloads.workload import Bench, Case, Steps

STRIDE = 4096


@dataclass(frozen=True)
class FirstTouch:
    """One write every 4096 bytes of memory that was mapped just before, unmapped after each repeat.

    Memory that this guest's kernel has had before costs no more than its own fault: what a host charges for the very
    first use after boot (validation of pages under SEV-SNP) is seen by the first records of a boot alone.

    Args:
        megabytes: MiB a repeat.
        ablations: the same without huge pages.
    """

    megabytes: int = 64
    ablations: bool = True

    def __post_init__(self) -> None:
        require(1 <= self.megabytes <= 65536, "megabytes", self.megabytes, "1 to 65536")

    def cases(self, bench: Bench) -> Iterator[Case]:
        pages = self.megabytes * 2**20 // STRIDE
        for huge in (True, False) if self.ablations else (True,):
            ablation = None if huge else HUGE_OFF
            yield Case("write", lambda huge=huge: self._open(huge), pages, "pages of 4 KiB", ablation=ablation)

    @contextmanager
    def _open(self, huge: bool) -> Iterator[Steps]:
        stack, views = ExitStack(), list[np.ndarray]()

        def before() -> None:
            region = stack.enter_context(mapped(self.megabytes * 2**20, huge))
            views.append(np.frombuffer(region, np.uint8)[::STRIDE])

        def run() -> None:
            views[0][...] = 1

        def after() -> None:
            views.clear()  # no mapping is closed under a view of it
            stack.close()

        yield Steps(run, before, after)
