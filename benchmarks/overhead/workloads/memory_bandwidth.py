"""Memory bandwidth by the four loops of STREAM (McCalpin 1995): copy, scale, add, triad."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from privbench.benchmarks.conform import require
from privbench.benchmarks.overhead.workloads.workload import Bench, Case, Steps

SCALAR = 3.0
ARRAYS = {"copy": 2, "scale": 2, "add": 3, "triad": 3}
"""Arrays that a loop reads and writes: STREAM counts these bytes, and no fetch before a write."""


@dataclass(frozen=True)
class MemoryBandwidth:
    """Three arrays of float64, worked through by PyTorch's vectorised loops.

    Args:
        megabytes: MiB of an array; STREAM asks for four times the last cache, and less is noted as a doubt.
        threads: that share the work; ``None``: as many as processors may be used.
    """

    megabytes: int = 128
    threads: int | None = None

    def __post_init__(self) -> None:
        require(1 <= self.megabytes <= 65536, "megabytes", self.megabytes, "1 to 65536")
        require(self.threads is None or self.threads >= 1, "threads", self.threads, "1 or more")

    def cases(self, bench: Bench) -> Iterator[Case]:
        size, last = self.megabytes * 2**20, max(bench.caches.values(), default=0)
        small = f"arrays of {self.megabytes} MiB are below four times the last cache ({last // 2**20} MiB)"
        for loop, arrays in ARRAYS.items():
            yield Case(
                name=loop,
                open=lambda loop=loop: self._open(loop, size // 8),
                amount=arrays * size,
                unit="bytes",
                threads=self.threads or len(bench.cpus),
                shared=True,
                doubts=(small,) if size < 4 * last else (),
            )

    @contextmanager
    def _open(self, loop: str, length: int) -> Iterator[Steps]:
        a, b, c = (torch.full((length,), v, dtype=torch.float64) for v in (0.0, 1.0, 2.0))
        loops: dict[str, Callable[[], object]] = {
            "copy": lambda: a.copy_(b),
            "scale": lambda: torch.mul(b, SCALAR, out=a),
            "add": lambda: torch.add(b, c, out=a),
            "triad": lambda: torch.add(b, c, alpha=SCALAR, out=a),
        }
        yield Steps(loops[loop])
