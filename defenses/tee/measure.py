"""The launch measurement that an SEV-SNP guest should have, computed from what it is started with.

The firmware extends a digest by each page of the initial guest (AMD 56860, SNP_LAUNCH_UPDATE): OVMF, the sections that
its SEV metadata names, the hashes of a directly booted kernel, and each processor's first state. The digests themselves
are those of ``sev-snp-measure``; here its inputs are checked, and may be digests where the files aren't at hand.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sevsnpmeasure.gctx import GCTX
from sevsnpmeasure.guest import snp_update_metadata_pages
from sevsnpmeasure.ovmf import OVMF, OvmfSevMetadataSectionDesc
from sevsnpmeasure.sev_hashes import SevHashes
from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vcpu_types import CPU_SIGS, cpu_sig
from sevsnpmeasure.vmm_types import VMMType
from sevsnpmeasure.vmsa import VMSA, VMSA_SVSM

from privbench.benchmarks.build import ConfigError, require
from privbench.defenses.tee import firmware as fw
from privbench.defenses.tee.firmware import Image, Section, whole

VCPUS = 4096  # KVM's limit on x86
NEEDED = "the processor that QEMU shows; or its vcpu_sig, or its vcpu_family, vcpu_model and vcpu_stepping"


@dataclass(frozen=True)
class Kernel:
    """A kernel that QEMU boots directly, by SHA-256.

    Args:
        kernel_hash, initrd_hash: of the files; without an initrd, of no bytes.
        cmdline_hash: of the command line: :func:`cmdline_hash`.

    Raises:
        ConfigError: a hash that isn't 32 bytes.
    """

    kernel_hash: bytes
    cmdline_hash: bytes
    initrd_hash: bytes = hashlib.sha256().digest()

    def __post_init__(self) -> None:
        for name in ("kernel_hash", "cmdline_hash", "initrd_hash"):
            _digest(name, getattr(self, name), 32)


@dataclass(frozen=True)
class Guest:
    """All that a launch measurement depends on.

    Args:
        ovmf_hash: the digest after OVMF's pages, 48 bytes: :func:`ovmf_hash`.
        ovmf_sections: in the order of OVMF's SEV metadata.
        sev_es_reset_eip: where processors but the first start.
        sev_hashes_table_gpa: where OVMF expects the hashes of the kernel; 0 if nowhere.
        vcpus: virtual processors.
        vcpu_sig: their CPUID signature; None only for ec2 and gce, which don't show it to OVMF.
        kernel: None for a guest that boots from its disk, which is then not part of the measurement.
        guest_features: SEV_FEATURES of AMD 24593, bit 0 (SNP) set.
        vmm_type: ``QEMU``, ``ec2`` or ``gce``.

    Raises:
        ConfigError: a value that no guest has.
    """

    ovmf_hash: bytes
    ovmf_sections: tuple[Section, ...]
    sev_es_reset_eip: int
    sev_hashes_table_gpa: int
    vcpus: int
    vcpu_sig: int | None
    kernel: Kernel | None = None
    guest_features: int = 1
    vmm_type: str = "QEMU"

    def __post_init__(self) -> None:
        _digest("ovmf_hash", self.ovmf_hash, 48)
        fw.check_sections(self.ovmf_sections)
        whole("sev_es_reset_eip", self.sev_es_reset_eip, 1, fw.END - 1)
        whole("sev_hashes_table_gpa", self.sev_hashes_table_gpa, 0, fw.END - 1)
        check_processors(self.vcpus, self.vcpu_sig)
        whole("guest_features", self.guest_features, 1, (1 << 64) - 1)
        require(self.guest_features % 2 == 1, "guest_features", hex(self.guest_features), "bit 0 set, SEV-SNP active")
        known = VMMType.__members__
        require(self.vmm_type in known, "vmm_type", self.vmm_type, f"one of {', '.join(known)}")
        needed = self.vmm_type == "QEMU" and self.vcpu_sig is None
        require(not needed, "vcpu_type", None, NEEDED)
        if self.kernel is not None:
            self._check_table()

    def _check_table(self) -> None:
        pages = [s.gpa for s in self.ovmf_sections if s.section_type == fw.KERNEL_HASHES]
        expected = "a section of type 16, kernel hashes, as OVMF's AmdSev build has; or no kernel"
        require(bool(pages), "ovmf_sections", [s.section_type for s in self.ovmf_sections], expected)
        at = self.sev_hashes_table_gpa
        fits = any(page <= at <= page + fw.PAGE - fw.TABLE_BYTES for page in pages)
        require(fits, "sev_hashes_table_gpa", at, f"{fw.TABLE_BYTES} bytes within the section of type 16")

    def as_dict(self) -> dict[str, Any]:
        """What was measured, for people and JSON: digests in hexadecimal digits, the sections left out."""
        kernel = self.kernel
        return {
            "vmm_type": self.vmm_type,
            "vcpus": self.vcpus,
            "vcpu_sig": None if self.vcpu_sig is None else hex(self.vcpu_sig),
            "guest_features": hex(self.guest_features),
            "ovmf_hash": self.ovmf_hash.hex(),
            "kernel_hash": kernel and kernel.kernel_hash.hex(),
            "initrd_hash": kernel and kernel.initrd_hash.hex(),
            "cmdline_hash": kernel and kernel.cmdline_hash.hex(),
        }


class _Firmware(OVMF):
    """The library's view of an OVMF of which only the sections are known."""

    def __init__(self, sections: Sequence[Section], hashes_gpa: int = 0):
        self._sections, self._hashes_gpa = sections, hashes_gpa

    def metadata_items(self) -> list[OvmfSevMetadataSectionDesc]:
        return [OvmfSevMetadataSectionDesc(s.gpa, s.size, s.section_type) for s in self._sections]

    def sev_hashes_table_gpa(self) -> int:
        return self._hashes_gpa


class _Hashes(SevHashes):
    """The library's table of hashes, made from the hashes instead of the files."""

    def __init__(self, kernel: Kernel):
        self.kernel_hash, self.initrd_hash = kernel.kernel_hash, kernel.initrd_hash
        self.cmdline_hash = kernel.cmdline_hash


def launch_digest(guest: Guest) -> bytes:
    """The 48 bytes that MEASUREMENT of the guest's report should be."""
    context, vmm = GCTX(guest.ovmf_hash), VMMType[guest.vmm_type]
    firmware = _Firmware(guest.ovmf_sections, guest.sev_hashes_table_gpa)
    snp_update_metadata_pages(context, firmware, _Hashes(guest.kernel) if guest.kernel else None, vmm)
    state = VMSA(SevMode.SEV_SNP, guest.sev_es_reset_eip, guest.vcpu_sig or 0, guest.guest_features, vmm)
    for page in state.pages(guest.vcpus):
        context.update_vmsa_page(page)
    return context.ld()


def svsm_digest(ovmf: Image, svsm: Image, vars_size: int, vcpus: int, vcpu_sig: int | None) -> bytes:
    """The measurement of a guest that COCONUT-SVSM starts under QEMU; the kernel isn't part of it.

    Args:
        ovmf, svsm: the images; in memory, the SVSM lies below the variables, and those below OVMF.
        vars_size: bytes of OVMF's variables, which aren't measured.
        vcpus, vcpu_sig: as for :class:`Guest`.

    Raises:
        ConfigError: a value out of range, or an SVSM image that doesn't say where it starts.
    """
    check_processors(vcpus, vcpu_sig)
    whole("vars_size", vars_size, fw.PAGE, fw.LARGEST, fw.PAGE)
    require(vcpu_sig is not None, "vcpu_type", None, NEEDED)
    entry = svsm.words.get(fw.SVSM_INFO, -1)
    require(0 <= entry < len(svsm.raw), "svsm", entry, "an image whose table of GUIDs says where in it the SVSM starts")
    context, top = GCTX(), fw.END - len(ovmf.raw)
    base = top - vars_size - len(svsm.raw)
    context.update_normal_pages(top, ovmf.raw)
    context.update_normal_pages(base, svsm.raw)
    snp_update_metadata_pages(context, _Firmware(svsm.sections), None, VMMType.QEMU)
    for page in VMSA_SVSM(base + entry, vcpu_sig or 0).pages(vcpus):
        context.update_vmsa_page(page)
    return context.ld()


def ovmf_hash(image: Image) -> bytes:
    """The digest after OVMF's pages, the first that are measured."""
    context = GCTX()
    context.update_normal_pages(fw.END - len(image.raw), image.raw)
    return context.ld()


def cmdline_hash(field: str, text: Any) -> bytes:
    """SHA-256 of a kernel's command line as QEMU hands it over: the text after ``-append`` and a null character.

    Raises:
        ConfigError: for ``field``, if it isn't text in UTF-8 without null characters.
    """
    require(isinstance(text, str) and "\0" not in text, field, text, "text without null characters")
    try:
        return hashlib.sha256(text.encode() + b"\0").digest()
    except UnicodeEncodeError:
        raise ConfigError(field, ascii(text), "text in UTF-8") from None


def processor(
    kind: str | None = None,
    sig: int | None = None,
    family: int | None = None,
    model: int | None = None,
    step: int | None = None,
) -> int | None:
    """The CPUID signature (AMD 25481) that a type, a signature, or family, model and stepping say; None without any.

    Raises:
        ConfigError: more than one of the three ways, or a value out of range.
    """
    parts = {"vcpu_family": family, "vcpu_model": model, "vcpu_stepping": step}
    given = [part for part in parts.values() if part is not None]
    ways = (kind is not None) + (sig is not None) + bool(given)
    require(ways < 2, "vcpu_type", kind or sig, "one of a type, a signature, and family with model and stepping")
    if kind is not None:
        require(isinstance(kind, str) and kind in CPU_SIGS, "vcpu_type", kind, f"one of {', '.join(CPU_SIGS)}")
        return CPU_SIGS[kind]
    if given:
        for (name, part), most in zip(parts.items(), (0xF + 0xFF, 0xFF, 0xF), strict=True):
            whole(name, part, 0, most)
        return cpu_sig(*given)
    return sig


def check_processors(vcpus: int, vcpu_sig: int | None) -> None:
    """Refuse a number of processors that no guest has, and a signature of more than 32 bits."""
    whole("vcpus", vcpus, 1, VCPUS)
    if vcpu_sig is not None:
        whole("vcpu_sig", vcpu_sig, 0, (1 << 32) - 1)


def _digest(field: str, value: Any, length: int) -> None:
    fits = isinstance(value, bytes) and len(value) == length
    shown = value.hex() if isinstance(value, bytes) else value
    require(fits, field, shown, f"{length} bytes, {2 * length} hexadecimal digits")
