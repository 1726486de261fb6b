"""A matrix product, which computes much on little memory, with each number of threads."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from privbench.benchmarks.conform import require
from privbench.benchmarks.overhead.workloads.workload import Bench, Case, Steps

ONE_THREAD = "one thread"


@dataclass(frozen=True)
class MatrixProduct:
    """``A @ B`` of float32.

    Args:
        size: rows and columns.
        threads: numbers of threads, one case each (those beyond the processors are unavailable); empty: as many as may
            be used, and one as an ablation.
        seed: of the entries.
    """

    size: int = 1024
    threads: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        require(1 <= self.size <= 32768, "size", self.size, "1 to 32768")
        distinct = len(set(self.threads)) == len(self.threads) and all(t >= 1 for t in self.threads)
        require(distinct, "threads", self.threads, "numbers from 1, each once")
        require(0 <= self.seed < 2**63, "seed", self.seed, "0 to 2^63 - 1")

    def cases(self, bench: Bench) -> Iterator[Case]:
        work, most = 2 * self.size**3, len(bench.cpus)
        for number in self.threads or (most,):
            name = f"{self.size}-threads{number}" if self.threads else f"{self.size}"
            yield Case(name, self._open, work, "operations", threads=number)
        if not self.threads and most > 1:
            yield Case(f"{self.size}", self._open, work, "operations", ablation=ONE_THREAD)

    @contextmanager
    def _open(self) -> Iterator[Steps]:
        draw = torch.Generator().manual_seed(self.seed)
        a, b = (torch.randn(self.size, self.size, generator=draw) for _ in range(2))
        out = torch.empty_like(a)
        yield Steps(lambda: torch.mm(a, b, out=out))
