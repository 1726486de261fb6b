"""An arm as QEMU's command line, for hosts without libvirt (QEMU 9.1 or later, its page amd-memory-encryption)."""

import shlex

from privbench.benchmarks.overhead.plan_arms import Arm
from privbench.benchmarks.overhead.plan_domain import MAC, OVERLAY
from privbench.benchmarks.overhead.plan_machine import PAGES, Machine


def command(machine: Machine, arm: Arm) -> list[str]:
    """Program and arguments; arms differ in name, kernel command line and what protects them alone."""
    protected = "" if arm.policy is None else ",confidential-guest-support=sev0"
    huge = machine.hugepages != "none"
    pages = f",hugetlb=on,hugetlbsize={PAGES[machine.hugepages]}K" if huge else ""
    memory = f"memory-backend-memfd,id=ram0,size={machine.memory}M,share=on,merge=off,prealloc=on{pages}"
    cores = len(machine.pinned)
    return [
        # taskset keeps all threads on the processors of the plan, numactl the memory on the node.
        *("numactl", f"--membind={machine.node}", "taskset", "--cpu-list", machine.cpus, "qemu-system-x86_64"),
        *("-name", f"guest=privbench-{arm.name},debug-threads=on", "-nodefaults", "-no-user-config", "-no-reboot"),
        *("-machine", f"{machine.machine},memory-backend=ram0,vmport=off,hpet=off{protected}", "-accel", "kvm"),
        *("-cpu", "host,migratable=off" if machine.cpu == "host" else machine.cpu),
        *("-smp", f"{cores},sockets=1,dies=1,cores={cores},threads=1"),
        *("-m", f"{machine.memory}M", "-object", memory, "-overcommit", "mem-lock=on"),
        *_protection(machine, arm),
        # As a ROM and not as flash, which QEMU refuses to use for the code of a SEV-SNP guest.
        *("-bios", machine.firmware, "-kernel", machine.kernel, "-initrd", machine.initrd),
        *("-append", machine.command_line(arm.append)),
        *("-blockdev", f"driver=file,node-name=file0,filename={OVERLAY},cache.direct=on,aio=native"),
        *("-blockdev", "driver=qcow2,node-name=disk0,file=file0,cache.direct=on"),
        *("-device", "virtio-blk-pci,drive=disk0,iommu_platform=on,disable-legacy=on,romfile="),
        *("-netdev", f"user,id=net0,hostfwd=tcp:127.0.0.1:{machine.port}-:22"),
        *("-device", f"virtio-net-pci,netdev=net0,mac={MAC},iommu_platform=on,disable-legacy=on,romfile="),
        *("-object", "rng-random,id=rng0,filename=/dev/urandom"),
        *("-device", "virtio-rng-pci,rng=rng0,iommu_platform=on,disable-legacy=on,romfile="),
        *("-display", "none", "-serial", "file:/var/lib/privbench/console.log"),
    ]


def _protection(machine: Machine, arm: Arm) -> list[str]:
    if arm.policy is None:
        return []
    kind = "sev-snp-guest" if arm.launch == "sev-snp" else "sev-guest"
    where = f"cbitpos={machine.cbitpos},reduced-phys-bits={machine.reduced_phys_bits}"
    return ["-object", f"{kind},id=sev0,{where},policy=0x{arm.policy:x}"]


def script(machine: Machine, arm: Arm) -> str:
    """A shell script that starts the arm and ends with it."""
    words = command(machine, arm)
    lines, line = [], ""
    for word in words:
        if word.startswith("-") and not word.startswith("--") and line:
            lines.append(line)
            line = ""
        line = f"{line} {shlex.quote(word)}".strip()
    body = " \\\n  ".join([*lines, line])
    return f"#!/bin/sh\n# {arm.name}: {arm.tells}.\nexec {body}\n"
