"""Which machine this is, as far as it bears on time: read from ``/proc`` and ``/sys`` of any root directory.

Nothing that names the machine's owner is read: no host name, address, serial number or file system's id but those that
the kernel's command line may hold.
"""

import importlib.metadata
import platform
import re
from pathlib import Path
from typing import Any

from privbench.benchmarks.overhead import gpu, probe
from privbench.benchmarks.overhead.probe import number, text

ROOT = Path("/")
PACKAGES = ("privbench", "torch", "torchvision", "opacus", "numpy", "scipy", "cryptography", "hydra-core")
CPU = "sys/devices/system/cpu"
SLOT = 2048
"""Bytes of one slot of the swiotlb (include/linux/swiotlb.h, IO_TLB_SHIFT)."""


def machine(root: Path = ROOT, scratch: Path | None = None) -> dict[str, Any]:
    """The schema's ``machine``; graphics processors are asked for only on the real root.

    Args:
        root: of the machine's ``/proc`` and ``/sys``.
        scratch: the folder whose file system is named.
    """
    return {
        "cpu": cpu(root),
        "kernel": kernel(root),
        "memory": memory(root),
        "place": {**place(root), "scratch_filesystem": filesystem(root, scratch) if scratch else None},
        "gpus": gpu.found() if root == ROOT else None,
    }


def boot(root: Path = ROOT) -> str:
    """The kernel's boot id; else the second of its boot, as ``/proc/stat`` has it; ``unknown`` without either."""
    since = re.search(r"^btime (\d+)$", text(root, "proc/stat") or "", re.MULTILINE)
    return text(root, "proc/sys/kernel/random/boot_id") or (f"btime {since[1]}" if since else "unknown")


def cpu(root: Path) -> dict[str, Any]:
    """The first processor; heterogeneous machines aren't told apart."""
    blocks = [probe.fields(b) for b in re.split(r"\n\s*\n", text(root, "proc/cpuinfo") or "") if "processor" in b]
    first = blocks[0] if blocks else {}
    cores = {(b.get("physical id"), b.get("core id")) for b in blocks if "core id" in b}
    sockets = {b["physical id"] for b in blocks if "physical id" in b}
    active = number(root, f"{CPU}/smt/active")
    return {
        "vendor": first.get("vendor_id") or first.get("CPU implementer"),
        "model_name": first.get("model name"),
        "family": probe.whole(first.get("cpu family")),
        "model": probe.whole(first.get("model")) if "model" in first else probe.whole(first.get("CPU part")),
        "stepping": probe.whole(first.get("stepping")),
        "microcode": first.get("microcode"),
        "logical": len(blocks) or None,
        "cores": len(cores) or None,
        "sockets": len(sockets) or None,
        "smt": None if active is None else bool(active),
        "flags": sorted((first.get("flags") or first.get("Features") or "").split()),
        "caches": _caches(root),
        "mitigations": {
            p.name: text(p.parent, p.name) or "" for p in probe.listed(root, f"{CPU}/vulnerabilities", "*")
        },
        "governor": text(root, f"{CPU}/cpu0/cpufreq/scaling_governor"),
        "frequency_driver": text(root, f"{CPU}/cpu0/cpufreq/scaling_driver"),
        "boost": _boost(root),
        "max_khz": number(root, f"{CPU}/cpu0/cpufreq/cpuinfo_max_freq"),
    }


def _caches(root: Path) -> list[dict[str, Any]]:
    found = []
    for index in probe.listed(root, f"{CPU}/cpu0/cache", "index*"):
        level, size = number(index, "level"), probe.size(text(index, "size"))
        if level is not None and size is not None:
            shared = len(probe.cpus(text(index, "shared_cpu_list"))) or None
            found.append({"level": level, "type": text(index, "type") or "unknown", "bytes": size, "shared_by": shared})
    return found


def _boost(root: Path) -> bool | None:
    on, off = number(root, f"{CPU}/cpufreq/boost"), number(root, f"{CPU}/intel_pstate/no_turbo")
    if on is not None:
        return bool(on)
    return None if off is None else not off


def kernel(root: Path) -> dict[str, Any]:
    line = text(root, "proc/cmdline")
    slots = number(root, "sys/kernel/debug/swiotlb/io_tlb_nslabs")
    options = [o.partition("=")[2].split(",") for o in (line or "").split() if o.startswith("swiotlb=")]
    return {
        "release": text(root, "proc/sys/kernel/osrelease"),
        "version": text(root, "proc/sys/kernel/version"),
        "command_line": line,
        "clocksource": text(root, "sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "swiotlb_bytes": None if slots is None else slots * SLOT,
        "swiotlb_forced": None if line is None else any("force" in o for o in options),
    }


def memory(root: Path) -> dict[str, Any]:
    held = probe.fields(text(root, "proc/meminfo"))
    pages = []
    for folder in probe.listed(root, "sys/kernel/mm/hugepages", "hugepages-*"):
        size = probe.size(folder.name.removeprefix("hugepages-").upper())
        total, free = number(folder, "nr_hugepages"), number(folder, "free_hugepages")
        if size is not None and total is not None:
            pages.append({"bytes": size, "total": total, "free": free or 0})
    thp = "sys/kernel/mm/transparent_hugepage"
    return {
        "total_bytes": probe.size(held.get("MemTotal", "").replace(" kB", "K")),
        "available_bytes": probe.size(held.get("MemAvailable", "").replace(" kB", "K")),
        "swap_bytes": probe.size(held.get("SwapTotal", "").replace(" kB", "K")),
        "page_bytes": _page(root),
        "transparent_huge_pages": probe.chosen(text(root, f"{thp}/enabled")),
        "transparent_huge_page_defrag": probe.chosen(text(root, f"{thp}/defrag")),
        "huge_pages": pages,
        "numa": [_node(folder) for folder in probe.listed(root, "sys/devices/system/node", "node[0-9]*")],
    }


def _page(root: Path) -> int:
    """Of the recorded kernel, by the first mapping's line in ``smaps``; else this interpreter's."""
    for line in (text(root, "proc/self/smaps") or "").splitlines():
        if line.startswith("KernelPageSize:"):
            return int(line.split()[1]) * 1024
    import mmap

    return mmap.PAGESIZE


def _node(folder: Path) -> dict[str, Any]:
    total = re.search(r"MemTotal:\s+(\d+) kB", text(folder, "meminfo") or "")
    return {
        "node": int(folder.name.removeprefix("node")),
        "cpus": text(folder, "cpulist") or "none",
        "bytes": int(total[1]) * 1024 if total else None,
        "distances": [int(d) for d in (text(folder, "distance") or "").split()],
    }


def place(root: Path) -> dict[str, Any]:
    """What stands between this process and the processor, as far as it can be seen from inside."""
    maker, product = text(root, "sys/class/dmi/id/sys_vendor"), text(root, "sys/class/dmi/id/product_name")
    own = probe.fields(text(root, "proc/self/status"))
    return {
        "hypervisor": _hypervisor(root),
        "product": " ".join(p for p in (maker, product) if p) or None,
        "container": _container(root),
        "cpu_limit": _cpu_limit(root),
        "memory_limit_bytes": min(map(int, _limits(root, "memory.max")), default=None),
        "cpus_allowed": probe.cpus(own.get("Cpus_allowed_list")),
    }


def filesystem(root: Path, folder: Path) -> str | None:
    """The kind of the file system that ``folder`` is on (``ext4``, ``tmpfs``), by the longest mount point above it."""
    mounts = [line.split() for line in (text(root, "proc/self/mounts") or "").splitlines()]
    above = {str(p) for p in (folder.resolve(), *folder.resolve().parents)}
    # Of two mounts on one point the later hides the earlier.
    found = [(len(m[1]), i, m[2]) for i, m in enumerate(mounts) if len(m) > 2 and m[1] in above]
    return max(found)[2] if found else None


def _hypervisor(root: Path) -> str | None:
    """``none`` where the processor says that there is none; ``None`` where it doesn't say."""
    if kind := text(root, "sys/hypervisor/type"):
        return kind
    flags = probe.fields(text(root, "proc/cpuinfo")).get("flags")
    if flags is None:
        return None
    if "hypervisor" not in flags.split():
        return "none"
    clocks = text(root, "sys/devices/system/clocksource/clocksource0/available_clocksource") or ""
    named = {"kvm-clock": "kvm", "hyperv_clocksource_tsc_page": "hyperv", "hyperv_clocksource_msr": "hyperv"}
    return next((named[c] for c in clocks.split() if c in named), "unknown")


def _container(root: Path) -> str | None:
    """A name where something says so. Nothing has to: ``None`` is no proof that there is none."""
    for mark, name in ((".dockerenv", "docker"), ("run/.containerenv", "podman")):
        if (root / mark).exists():
            return name
    set_by = re.search(r"(?:^|\0)container=([^\0]+)", text(root, "proc/1/environ") or "")
    if set_by:
        return set_by[1]
    kinds = re.search(r"docker|lxc|kubepods|libpod|containerd", text(root, "proc/1/cgroup") or "")
    return kinds[0] if kinds else None


def _limits(root: Path, name: str) -> list[str]:
    """A limit of this process's control group (version 2) and of each above it, but for ``max``, which is none."""
    line = next((x for x in (text(root, "proc/self/cgroup") or "").splitlines() if x.startswith("0::")), "0::/")
    folder = Path("sys/fs/cgroup") / line.removeprefix("0::").strip("/")
    stated = [text(root, str(f / name)) for f in (folder, *folder.parents) if str(f).startswith("sys/fs/cgroup")]
    return [s for s in stated if s and not s.startswith("max")]


def _cpu_limit(root: Path) -> float | None:
    """Processors' worth of time, the least of this control group and those above it."""
    pairs = [s.split() for s in _limits(root, "cpu.max")]
    return min((int(quota) / int(period) for quota, period in pairs), default=None)


def packages() -> dict[str, str]:
    """Versions of what the times depend on; the interpreter's and the C library's among them."""
    found = {"python": platform.python_version(), "libc": "-".join(platform.libc_ver()) or "unknown"}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cache(machine_: dict[str, Any], level: int) -> int | None:
    """Bytes of the data cache of a level, as the kernel lists it for the first processor."""
    held = [c["bytes"] for c in machine_["cpu"]["caches"] if c["level"] == level and c["type"] != "Instruction"]
    return held[0] if held else None
