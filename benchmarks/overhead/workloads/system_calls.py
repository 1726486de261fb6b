"""What entering the kernel costs, seen from Python: the interpreter's share is in every number."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat

from privbench.benchmarks.conform import require
from privbench.benchmarks.overhead.workloads.workload import Bench, Case, Steps


@dataclass(frozen=True)
class SystemCalls:
    """``getppid``, which does nothing, and reading 4096 bytes of ``/dev/zero``.

    Args:
        calls: in a repeat.
    """

    calls: int = 100_000

    def __post_init__(self) -> None:
        require(self.calls >= 1, "calls", self.calls, "1 or more")

    def cases(self, bench: Bench) -> Iterator[Case]:
        for name in ("getppid", "read_zero"):
            yield Case(name, lambda name=name: self._open(name), calls=self.calls)

    @contextmanager
    def _open(self, name: str) -> Iterator[Steps]:
        if name == "getppid":
            yield Steps(lambda: self._loop(os.getppid))
            return
        handle = os.open("/dev/zero", os.O_RDONLY)
        try:
            yield Steps(lambda: self._loop(lambda: os.read(handle, 4096)))
        finally:
            os.close(handle)

    def _loop(self, call: Callable[[], object]) -> None:
        for _ in repeat(None, self.calls):
            call()
