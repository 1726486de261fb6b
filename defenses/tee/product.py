"""Processor lines and their TCB versions (AMD 57230; AMD 56860, TCB_VERSION)."""

from collections.abc import Mapping

SOFTWARE = "Software"
"""The software platform's own line, laid out like Milan."""

_OLD = {"boot_loader": 0, "tee": 1, "snp": 6, "microcode": 7}
_TURIN = {"fmc": 0, "boot_loader": 1, "tee": 2, "snp": 3, "microcode": 7}
_LINES = {
    "Milan": "Milan",
    "Genoa": "Genoa",
    "Bergamo": "Genoa",
    "Siena": "Genoa",
    "Turin": "Turin",
    SOFTWARE: SOFTWARE,
}

COMPONENTS: Mapping[str, Mapping[str, int]] = {"Milan": _OLD, "Genoa": _OLD, "Turin": _TURIN, SOFTWARE: _OLD}
"""Where each component's byte lies in the 8 bytes of a TCB version."""

ADVISORY: Mapping[str, Mapping[str, int]] = {"Milan": {"snp": 0x18}, "Genoa": {"snp": 0x17}, SOFTWARE: {}}
"""Floors of AMD-SB-3019 (microcode signature verification). No sourced floor exists for Turin, and none is guessed."""


def of_cpu(family: int, model: int) -> str | None:
    """The line of a processor by CPUID family and model, None for one that isn't known."""
    if (family, model) == (0, 0):
        return SOFTWARE  # no processor of AMD's has family 0
    if family == 0x19 and model <= 0x0F:
        return "Milan"
    if family == 0x19 and (0x10 <= model <= 0x1F or 0xA0 <= model <= 0xAF):
        return "Genoa"
    if family == 0x1A and model <= 0x11:
        return "Turin"
    return None


def of_name(name: str) -> str | None:
    """The line of a certificate's product name (``Milan-B0``), None for one that isn't known."""
    return _LINES.get(name.split("-")[0])


def tcb(raw: bytes, product: str) -> dict[str, int]:
    """Security patch levels, 0 to 255, of the 8 bytes of a TCB version. They are never compared as one integer."""
    return {name: raw[at] for name, at in COMPONENTS[product].items()}


def reserved(raw: bytes, product: str) -> bytes:
    """The bytes of a TCB version that have no meaning on ``product``."""
    used = set(COMPONENTS[product].values())
    return bytes(b for at, b in enumerate(raw) if at not in used)
