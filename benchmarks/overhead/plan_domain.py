"""An arm as a libvirt domain (https://libvirt.org/formatdomain.html; SEV-SNP since libvirt 10.5)."""

from xml.etree import ElementTree as ET

from privbench.benchmarks.overhead.plan_arms import Arm
from privbench.benchmarks.overhead.plan_machine import PAGES, Machine

OVERLAY = "/var/lib/privbench/run.qcow2"
"""The disk of the boot that runs: an overlay on the image, made anew for each boot."""

MAC = "52:54:00:12:34:56"
"""Of the guest's network card: guests often tie its settings to the one of their first boot."""


def domain(machine: Machine, arm: Arm) -> str:
    """The domain's XML; arms differ in name, kernel command line and ``launchSecurity`` alone."""
    root = ET.Element("domain", type="kvm")
    _text(root, "name", f"privbench-{arm.name}")
    _text(root, "memory", str(machine.memory), unit="MiB")
    _memory(root, machine)
    _text(root, "vcpu", str(len(machine.pinned)), placement="static")
    tune = ET.SubElement(root, "cputune")
    for guest, host in enumerate(machine.pinned):
        ET.SubElement(tune, "vcpupin", vcpu=str(guest), cpuset=str(host))
    ET.SubElement(tune, "emulatorpin", cpuset=machine.cpus)
    ET.SubElement(ET.SubElement(root, "numatune"), "memory", mode="strict", nodeset=str(machine.node))
    system = ET.SubElement(root, "os")
    _text(system, "type", "hvm", arch="x86_64", machine=machine.machine)
    # As a ROM (-bios) and not as flash, which QEMU refuses to use for the code of a SEV-SNP guest.
    _text(system, "loader", machine.firmware, type="rom")
    _text(system, "kernel", machine.kernel)
    _text(system, "initrd", machine.initrd)
    _text(system, "cmdline", machine.command_line(arm.append))
    features = ET.SubElement(root, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    _processor(root, machine)
    clock = ET.SubElement(root, "clock", offset="utc")
    ET.SubElement(clock, "timer", name="hpet", present="no")
    _text(root, "on_poweroff", "destroy")
    _text(root, "on_reboot", "destroy")
    _text(root, "on_crash", "destroy")
    _devices(root, machine)
    if arm.policy is not None:
        kind = "sev-snp" if arm.launch == "sev-snp" else "sev"
        security = ET.SubElement(root, "launchSecurity", type=kind)
        _text(security, "cbitpos", str(machine.cbitpos))
        _text(security, "reducedPhysBits", str(machine.reduced_phys_bits))
        _text(security, "policy", f"0x{arm.policy:x}")
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _memory(root: ET.Element, machine: Machine) -> None:
    backing = ET.SubElement(root, "memoryBacking")
    if machine.hugepages != "none":
        ET.SubElement(ET.SubElement(backing, "hugepages"), "page", size=str(PAGES[machine.hugepages]), unit="KiB")
    ET.SubElement(backing, "nosharepages")
    # The memory of SEV guests is locked in any case: it is in all arms.
    ET.SubElement(backing, "locked")
    ET.SubElement(backing, "source", type="memfd")
    ET.SubElement(backing, "access", mode="shared")


def _processor(root: ET.Element, machine: Machine) -> None:
    if machine.cpu == "host":
        processor = ET.SubElement(root, "cpu", mode="host-passthrough", check="none", migratable="off")
    else:
        processor = ET.SubElement(root, "cpu", mode="custom", match="exact", check="none")
        _text(processor, "model", machine.cpu, fallback="forbid")
    ET.SubElement(processor, "topology", sockets="1", dies="1", cores=str(len(machine.pinned)), threads="1")


def _devices(root: ET.Element, machine: Machine) -> None:
    devices = ET.SubElement(root, "devices")
    _text(devices, "emulator", "/usr/bin/qemu-system-x86_64")
    disk = ET.SubElement(devices, "disk", type="file", device="disk")
    ET.SubElement(disk, "driver", name="qemu", type="qcow2", cache="none", io="native", iommu="on")
    ET.SubElement(disk, "source", file=OVERLAY)
    ET.SubElement(disk, "target", dev="vda", bus="virtio")
    # passt forwards without a bridge of the host's, as QEMU's own user network does in the command lines.
    network = ET.SubElement(devices, "interface", type="user")
    ET.SubElement(network, "mac", address=MAC)
    ET.SubElement(network, "model", type="virtio")
    ET.SubElement(network, "driver", iommu="on")
    ET.SubElement(network, "backend", type="passt")
    forward = ET.SubElement(network, "portForward", proto="tcp", address="127.0.0.1")
    ET.SubElement(forward, "range", start=str(machine.port), to="22")
    noise = ET.SubElement(devices, "rng", model="virtio")
    _text(noise, "backend", "/dev/urandom", model="random")
    ET.SubElement(noise, "driver", iommu="on")
    serial = ET.SubElement(devices, "serial", type="pty")
    ET.SubElement(serial, "target", port="0")
    ET.SubElement(devices, "controller", type="usb", model="none")
    ET.SubElement(devices, "memballoon", model="none")


def _text(parent: ET.Element, name: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, name, attributes).text = text
