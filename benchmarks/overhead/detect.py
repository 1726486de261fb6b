"""What on this machine says that its memory is protected, and how much each of it is worth.

Signs, strongest first: a report that verifies (proof, :mod:`~.proof`); MSR 0xC0010131, which the processor sets; the
kernel's boot line; a provider of reports; the guest's device. What the processor *could* do is no sign that it does
(AMD 56860; APM volume 2, 15.34; Linux Documentation/arch/x86/amd-memory-encryption.rst).
"""

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from privbench.benchmarks.overhead import probe
from privbench.benchmarks.overhead.fingerprint import ROOT

MSR_SEV_STATUS = 0xC0010131
FEATURES = ("SEV", "SEV-ES", "SEV-SNP")
"""By bit of MSR_SEV_STATUS."""

PROVIDERS = {"sev_guest": "AMD SEV-SNP guest", "tdx_guest": "Intel TDX guest", "arm_cca_guest": "Arm CCA realm"}
_CONFIGFS = "sys/kernel/config/tsm/report"
_ACTIVE = re.compile(r"Memory Encryption Features active:\s*(.+)")
_BOOT = re.compile(r"Linux version \d")
"""The kernel's first line."""

Sign = dict[str, Any]


def signs(root: Path = ROOT, log: Callable[[Path], str | None] | None = None) -> list[Sign]:
    """Every sign that was looked for, found or not; ``found`` is ``None`` where it couldn't be looked at.

    Args:
        root: of the machine's ``/dev``, ``/proc`` and ``/sys``.
        log: the kernel's messages; by default ``/dev/kmsg``, or the log files that distributions keep.
    """
    return [
        _register(root),
        _active((log or messages)(root)),
        _provider(root),
        _device(root, "sev-guest", "AMD SEV-SNP guest"),
        _device(root, "tdx_guest", "Intel TDX guest"),
        _vtom(root),
        _capability(root),
        _host(root),
    ]


def claimed(found: list[Sign]) -> str:
    """The strongest sign in words, for people: a claim of this kernel. What was proof is found from its bytes alone."""
    seen = [s for s in found if s["found"] and s["strength"] not in ("proof", "capability")]
    return seen[0]["says"] if seen else "no sign of memory encryption"


def messages(root: Path) -> str | None:
    """The kernel's messages since boot, as far as they are still there and may be read."""
    import os

    try:
        # Not text(): /dev/kmsg hands out one message a read, and blocks after the last one.
        handle = os.open(root / "dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return probe.text(root, "var/log/dmesg") or _last_boot(probe.text(root, "var/log/kern.log", end=True))
    found: list[bytes] = []
    try:
        while len(found) < 2**16 and (one := os.read(handle, 8192)):
            found.append(one)
    except OSError:  # EAGAIN after the last; EPIPE where messages were overwritten meanwhile
        pass
    finally:
        os.close(handle)
    return b"".join(found).decode(errors="replace") or None


def _last_boot(log: str | None) -> str | None:
    """Of a log that is kept over boots what the last one wrote. One that began before is the only one in it."""
    starts = [found.start() for found in _BOOT.finditer(log or "")]
    return log[starts[-1] :] if log and starts else log


def _sign(name: str, strength: str, found: bool | None, says: str) -> Sign:
    return {"name": name, "strength": strength, "found": found, "says": says}


def _register(root: Path) -> Sign:
    """Needs root and the msr module; the kernel's module reads the register by seeking to its number."""
    name = "MSR 0xC0010131"
    try:
        with (root / "dev/cpu/0/msr").open("rb") as file:
            file.seek(MSR_SEV_STATUS)
            raw = file.read(8)
        value = struct.unpack("<Q", raw)[0]
    except (OSError, struct.error) as error:
        reason = getattr(error, "strerror", None) or "no such register"
        return _sign(name, "register", None, f"can't be read ({reason}): root and the kernel's msr module are needed")
    on = [feature for bit, feature in enumerate(FEATURES) if value >> bit & 1]
    return _sign(name, "register", bool(on), f"{', '.join(on) or 'no SEV feature'} ({value:#x})")


def _active(log: str | None) -> Sign:
    name = "kernel log: Memory Encryption Features active"
    if log is None:
        return _sign(name, "kernel", None, "the kernel's log can't be read")
    lines = _ACTIVE.findall(log)
    if not lines:
        return _sign(name, "kernel", False, "no such line in what the log still holds")
    text = lines[-1].strip()
    # A host with SME or TSME prints the same line: that its memory is encrypted protects nobody's guest from it.
    guest = re.search(r"\bSEV\b|TDX", text)
    return _sign(name, "kernel", bool(guest), text if guest else f"{text}: a host's own memory, no guest's")


def _provider(root: Path) -> Sign:
    """An entry has to be made to ask configfs for its provider; the one of an entry that is there says it too."""
    name = "configfs-tsm"
    if not (root / _CONFIGFS).is_dir():
        return _sign(name, "provider", False, "no such folder")
    for entry in probe.listed(root, _CONFIGFS, "*"):
        if provider := probe.text(entry, "provider"):
            return _sign(name, "provider", provider in PROVIDERS, PROVIDERS.get(provider, f"unknown: {provider}"))
    return _sign(name, "provider", None, "there, without an entry that names its provider")


def _device(root: Path, device: str, says: str) -> Sign:
    there = (root / "dev" / device).exists()
    return _sign(f"/dev/{device}", "device", there, says if there else "no such device")


def _vtom(root: Path) -> Sign:
    """Hyper-V's isolation hides the guest's device behind a vTPM (Linux arch/x86/hyperv/ivm.c logs its type)."""
    name = "Hyper-V isolation with a vTPM"
    maker = probe.text(root, "sys/class/dmi/id/sys_vendor") or ""
    there = maker.startswith("Microsoft") and (root / "dev/tpmrm0").exists()
    says = "a Hyper-V guest with a vTPM: it may be isolated, and its reports lie in the vTPM"
    return _sign(name, "capability", there, says if there else "no Hyper-V guest with a vTPM")


def _capability(root: Path) -> Sign:
    flags = (probe.fields(probe.text(root, "proc/cpuinfo")).get("flags") or "").split()
    able = [f for f in ("sme", "sev", "sev_es", "sev_snp", "tdx_guest") if f in flags]
    says = f"the processor's flags {', '.join(able)}: what it could do, not what is on" if able else "no such flag"
    return _sign("cpuinfo flags", "capability", bool(able), says)


def _host(root: Path) -> Sign:
    values = {n: probe.text(root, f"sys/module/kvm_amd/parameters/{n}") for n in ("sev", "sev_es", "sev_snp")}
    on = [n for n, value in values.items() if value in ("Y", "1")]
    says = f"kvm_amd has {', '.join(on)}: this host could launch such guests" if on else "no such parameter is on"
    return _sign("kvm_amd parameters", "capability", bool(on), says)
