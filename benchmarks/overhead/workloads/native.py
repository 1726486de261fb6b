"""A loop of three instructions, for what an interpreter is too slow to time: following pointers."""

import ctypes
import mmap
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from privbench.benchmarks.overhead.workloads.workload import Unavailable

CHASE = {
    # mov rdi,[rdi]; dec rsi; jnz -8; mov rax,rdi; ret
    "x86_64": bytes.fromhex("488b3f 48ffce 75f8 4889f8 c3"),
    # ldr x0,[x0]; subs x1,x1,#1; b.ne -8; ret
    "aarch64": bytes.fromhex("000040f9 210400f1 c1ffff54 c0035fd6"),
}
"""``uintptr_t chase(uintptr_t at, uint64_t steps)``: each load needs the one before it. ``steps`` is 1 or more."""

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def chaser() -> Iterator[Callable[[int, int], int]]:
    """The loop as a function of an address and a number of steps, which returns the address that it came to.

    Raises:
        Unavailable: another processor, or a kernel that lets no memory become code.
    """
    code = CHASE.get(platform.machine())
    if code is None:
        raise Unavailable(f"no machine code for {platform.machine()}: there is some for {', '.join(CHASE)}")
    region = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    region.write(code)
    view = ctypes.c_char.from_buffer(region)
    at = ctypes.addressof(view)
    try:
        # Never writable and executable at a time: kernels that are hardened refuse that.
        if _libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_EXEC):
            raise Unavailable("the kernel lets no memory become code (mprotect)")
        signature = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)
        yield signature(at)
    finally:
        del view
        region.close()
