"""The virtual machine that all arms share: everything here is the same in each of them."""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from privbench.benchmarks.conform import require

PAGES = {"none": 0, "2M": 2048, "1G": 1048576}
"""Size of a huge page in KiB by name."""


@dataclass(frozen=True)
class Machine:
    """What the arms have in common. Paths are the host's.

    Args:
        cpus: the host's logical processors that the guest's are pinned to, one to one: ``8-15`` or ``8,10,12``.
        node: the host's NUMA node whose memory the guest has; the processors should be of it.
        memory: of the guest, in MiB; a whole number of huge pages.
        hugepages: what backs the guest's memory on the host.
        cpu: QEMU's processor model, or ``host``.
        machine: QEMU's machine type.
        firmware: one OVMF for all arms; it has to know SEV-SNP.
        kernel, initrd: of the guest, the same for all arms.
        append: the guest's kernel command line.
        image: the prepared disk, qcow2; each boot starts from it, on an overlay of its own.
        cbitpos: place of the encryption bit in an address, from CPUID 0x8000001F EBX, bits 0-5.
        reduced_phys_bits: address bits lost to encryption, from EBX, bits 6-11.
        port: of the host's loopback interface, forwarded to the guest's SSH.
        repeats: of each workload in a boot.
    """

    cpus: str = "8-15"
    node: int = 0
    memory: int = 16384
    hugepages: Literal["none", "2M", "1G"] = "none"
    cpu: str = "EPYC-v4"
    machine: str = "q35"
    firmware: str = "/usr/share/ovmf/OVMF.fd"
    kernel: str = "/var/lib/privbench/vmlinuz"
    initrd: str = "/var/lib/privbench/initrd.img"
    append: str = "root=/dev/vda1 ro console=ttyS0"
    image: str = "/var/lib/privbench/base.qcow2"
    cbitpos: int = 51
    reduced_phys_bits: int = 1
    port: int = 2222
    repeats: int = 10

    def __post_init__(self) -> None:
        processors(self.cpus)
        require(self.node >= 0, "node", self.node, "a NUMA node's number, at least 0")
        require(self.hugepages in PAGES, "hugepages", self.hugepages, f"of {', '.join(PAGES)}")
        require(self.memory >= 2048, "memory", self.memory, "MiB, at least 2048")
        page = max(PAGES[self.hugepages] // 1024, 1)
        require(self.memory % page == 0, "memory", self.memory, f"MiB, a multiple of {page}, a huge page's size")
        require(32 <= self.cbitpos <= 63, "cbitpos", self.cbitpos, "32 to 63, as CPUID 0x8000001F says (51 since Rome)")
        require(1 <= self.reduced_phys_bits <= 63, "reduced_phys_bits", self.reduced_phys_bits, "1 to 63")
        require(1024 <= self.port <= 65535, "port", self.port, "1024 to 65535")
        require(self.repeats >= 10, "repeats", self.repeats, "at least 10 in each boot")
        for name in ("firmware", "kernel", "initrd", "image"):
            path = getattr(self, name)
            # They are written into command lines, XML and QEMU options, where commas separate.
            good = PurePosixPath(path).is_absolute() and not set(path) & set(",'\"\n\\")
            require(good, name, path, "an absolute path without commas, quotes and backslashes")
        for name in ("cpu", "machine"):
            value = getattr(self, name)
            require(value.replace("-", "").replace(".", "").replace("_", "").isalnum(), name, value, "a name of QEMU's")
        require(not set(self.append) & set("'\"\n\\"), "append", self.append, "words without quotes and backslashes")

    @property
    def pinned(self) -> tuple[int, ...]:
        """The host's logical processors, in the order of the guest's."""
        return processors(self.cpus)

    def command_line(self, more: str) -> str:
        """The guest's kernel command line in an arm that adds ``more``."""
        return f"{self.append} {more}".strip()


def processors(text: str) -> tuple[int, ...]:
    """``8-10,12`` as numbers.

    Raises:
        ConfigError: not such a list, or a number twice.
    """
    right = "numbers and ranges, such as 8-15 or 8,10,12, each processor once"
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        whole = first.isascii() and first.isdigit() and (not last or (last.isascii() and last.isdigit()))
        require(whole and ("-" not in part or bool(last)), "cpus", text, right)
        low, high = int(first), int(last or first)
        require(low <= high < 65536, "cpus", text, right)
        found += range(low, high + 1)
    require(len(set(found)) == len(found), "cpus", text, right)
    return tuple(found)
