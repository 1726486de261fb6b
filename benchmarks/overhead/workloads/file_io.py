"""Writing a file and flushing it to its disk, and reading it back from there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from privbench.benchmarks.conform import require
from privbench.benchmarks.overhead.workloads.workload import Bench, Case, Steps

BOUNCED = "user-space bounce buffer"
"""Each block goes through one more copy, as through the memory that an encrypted guest shares with its host's devices.
A stand-in for that copy alone: no page is converted, and no host takes part."""


@dataclass(frozen=True)
class FileIO:
    """One file in the scratch folder, block by block.

    Where that folder is kept in memory (tmpfs), no disk is timed. The page cache is dropped before each read, as far as
    the kernel follows the advice; a host's own cache isn't.

    Args:
        megabytes: MiB of the file.
        kilobytes: KiB of a block.
        ablations: both again with each block copied through a bounce buffer.
    """

    megabytes: int = 64
    kilobytes: int = 1024
    ablations: bool = True

    def __post_init__(self) -> None:
        require(1 <= self.megabytes <= 65536, "megabytes", self.megabytes, "1 to 65536")
        fits = self.kilobytes >= 1 and self.megabytes * 1024 % self.kilobytes == 0
        require(fits, "kilobytes", self.kilobytes, "a block that divides the file")

    def cases(self, bench: Bench) -> Iterator[Case]:
        size = self.megabytes * 2**20
        path = str(bench.scratch / "file")
        volatile = (f"the scratch folder is in memory ({bench.filesystem}): no disk is timed",)
        for name in ("write_fsync", "read"):
            for ablation in (None, BOUNCED) if self.ablations else (None,):
                opener = self._write if name == "write_fsync" else self._read
                bounced = ablation is not None
                yield Case(
                    name=name,
                    open=lambda opener=opener, bounced=bounced: opener(path, bounced),
                    amount=size,
                    unit="bytes",
                    ablation=ablation,
                    doubts=volatile if bench.filesystem in ("tmpfs", "ramfs") else (),
                )

    @contextmanager
    def _write(self, path: str, bounced: bool) -> Iterator[Steps]:
        block = os.urandom(self.kilobytes * 1024)
        bounce = memoryview(bytearray(len(block)))

        def run() -> None:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                for _ in range(self.megabytes * 2**20 // len(block)):
                    if bounced:
                        bounce[:] = block
                    _whole(handle, bounce if bounced else memoryview(block))
                os.fsync(handle)
            finally:
                os.close(handle)

        yield Steps(run)

    @contextmanager
    def _read(self, path: str, bounced: bool) -> Iterator[Steps]:
        size = self.kilobytes * 1024
        target, bounce = memoryview(bytearray(size)), memoryview(bytearray(size))
        with self._write(path, bounced=False) as written:
            written.run()

        def before() -> None:
            handle = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)

        def run() -> int:
            handle, taken = os.open(path, os.O_RDONLY), 0
            try:
                while more := os.readv(handle, [bounce if bounced else target]):
                    if bounced:
                        target[:] = bounce
                    taken += more
                return taken
            finally:
                os.close(handle)

        yield Steps(run, before)


def _whole(handle: int, block: memoryview) -> None:
    while block:
        block = block[os.write(handle, block) :]
