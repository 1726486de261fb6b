"""Memory straight from the kernel, in huge pages where it has them or without."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np

HUGE_OFF = "huge pages off"


@contextmanager
def mapped(size: int, huge: bool = True) -> Iterator[mmap.mmap]:
    """``size`` bytes, zeroed, of which no page is touched yet.

    Args:
        huge: ask for transparent huge pages, or for none; either is advice, and the kernel's setting may overrule it.
    """
    region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel built without them
        region.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    try:
        yield region
    finally:
        region.close()


@contextmanager
def words(size: int, huge: bool = True) -> Iterator[np.ndarray]:
    """``size`` bytes as ``uint64``; whoever uses them drops every view before leaving."""
    with mapped(size, huge) as region:
        array = np.frombuffer(region, np.uint64)
        yield array
        del array
