"""``privbench attest measure``: the expected launch measurement, from files and options or from a JSON of digests."""

import argparse
import hashlib
import json
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privbench.benchmarks.build import ConfigError, require
from privbench.defenses.tee import firmware as fw
from privbench.defenses.tee.policy import hexadecimal
from privbench.defenses.tee.report import Malformed

if TYPE_CHECKING:
    from privbench.defenses.tee.measure import Guest, Kernel

MEASURED, BAD_INPUT = 0, 2
DESCRIPTION = "sev_snp_measurement"
"""The key of a JSON file under which the inputs of a measurement stand, as dstack publishes them."""
KEYS = (
    "ovmf_hash",
    "ovmf_sections",
    "sev_es_reset_eip",
    "sev_hashes_table_gpa",
    "kernel_hash",
    "initrd_hash",
    "base_cmdline",
    "vcpus",
    "vcpu_type",
    "guest_features",
)
_OPTIONS = {
    "ovmf": "the OVMF image",
    "vcpus": "number of virtual processors",
    "vcpu_type": "QEMU's name of the processor, such as EPYC-v4",
    "vcpu_sig": "instead of a type: its CPUID signature",
    "vcpu_family": "instead of a type: family, model and stepping",
    "vcpu_model": None,
    "vcpu_stepping": None,
    "vmm_type": "QEMU (default), ec2 or gce",
    "kernel": "the kernel that QEMU boots directly",
    "initrd": "its initial ramdisk",
    "append": "its command line",
    "guest_features": "the guest's SEV features (default: 0x1)",
    "snp_ovmf_hash": "the digest after OVMF's pages; from --ovmf then come only its sections",
    "svsm": "the image of COCONUT-SVSM, for a guest that it starts",
    "vars_size": "with --svsm: bytes of OVMF's variables",
    "vars_file": "instead of --vars-size: the file of the variables",
}
_FILES = ("ovmf", "kernel", "initrd", "svsm", "vars_file")
_NUMBERS = ("vcpus", "vcpu_sig", "vcpu_family", "vcpu_model", "vcpu_stepping", "guest_features", "vars_size")
_SNP_ONLY = ("kernel", "initrd", "append", "guest_features", "snp_ovmf_hash", "vmm_type")
_LARGEST_FILE = fw.END - 1  # the boot protocol has 32 bits for the size of an initrd
_LARGEST_JSON = 1 << 20
_LONGEST = 200  # characters of a value that are shown


def add(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``measure`` to the actions of ``privbench attest``. The options are those of ``sev-snp-measure``."""
    measure = actions.add_parser("measure", help="compute the launch measurement that a guest should have")
    measure.add_argument("--inputs", metavar="FILE", help="JSON with digests in place of the files and options below")
    for name, text in _OPTIONS.items():
        metavar = "FILE" if name in _FILES else "N" if name in _NUMBERS else "TEXT"
        measure.add_argument(f"--{name.replace('_', '-')}", metavar=metavar, help=text)
    measure.add_argument("--json", action="store_true")


def run(options: argparse.Namespace) -> int:
    """Print the measurement, 96 hexadecimal digits; 0, or 2 with one line for bad input."""
    try:
        found = measured(options)
    except ConfigError as error:
        shown = error.value if isinstance(error.value, str) else repr(error.value)
        if len(shown) > _LONGEST:
            shown = f"{shown[:_LONGEST]}..."
        line = " ".join(str(ConfigError(error.field, shown, error.expected)).split())
        # Keys of a JSON and names of files may come from anywhere: no escape codes of theirs get out.
        print(f"privbench attest: {line.encode('unicode_escape').decode()}", file=sys.stderr)
        return BAD_INPUT
    print(json.dumps(found, indent=2) if options.json else found["measurement"])
    return MEASURED


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """The measurement in hexadecimal digits, and what was measured.

    Raises:
        ConfigError: bad input of any kind, with the option or field, its value, and what would be right.
    """
    from privbench.defenses.tee import measure

    given = {name: getattr(options, name) for name in _OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    given |= {name: _integer(name, given[name]) for name in _NUMBERS if name in given}
    if options.inputs is not None:
        require(not given, ", ".join(given), "given", "no other inputs beside --inputs")
        guest = read_description(Path(options.inputs))
    elif "svsm" in given:
        return _svsm(given)
    else:
        guest = read_files(given)
    digest = measure.launch_digest(guest).hex()
    return {"schema": 1, "mode": "snp", "measurement": digest, **guest.as_dict()}


def read_files(given: dict[str, Any]) -> "Guest":
    """The guest that files and options describe.

    Args:
        given: options by name with underscores, numbers as integers.

    Raises:
        ConfigError: as for :func:`measured`.
    """
    from privbench.defenses.tee import measure

    for name in ("vars_size", "vars_file"):
        require(name not in given, name, given.get(name), "only together with --svsm")
    ovmf, signature = _machine(given)
    require(fw.RESET_BLOCK in ovmf.words, "ovmf", given["ovmf"], "an image that says where SEV-ES processors start")
    seed = given.get("snp_ovmf_hash")
    return measure.Guest(
        ovmf_hash=measure.ovmf_hash(ovmf) if seed is None else _hash("snp_ovmf_hash", seed, 48),
        ovmf_sections=ovmf.sections,
        sev_es_reset_eip=ovmf.words[fw.RESET_BLOCK],
        sev_hashes_table_gpa=ovmf.words.get(fw.HASH_TABLE, 0),
        vcpus=given["vcpus"],
        vcpu_sig=signature,
        kernel=_kernel(given),
        guest_features=given.get("guest_features", 1),
        vmm_type=given.get("vmm_type", "QEMU"),
    )


def read_description(path: Path) -> "Guest":
    """The guest that a JSON file describes by digests; the keys are :data:`KEYS`, under :data:`DESCRIPTION`.

    Raises:
        ConfigError: not such a file, or a key that is missing, unknown, given twice or of the wrong type.
    """
    from privbench.defenses.tee import measure

    document = _json(path)
    given = document.get(DESCRIPTION) if isinstance(document, dict) else None
    require(isinstance(given, dict), "inputs", str(path), f"a JSON object whose key {DESCRIPTION} holds an object")
    assert isinstance(given, dict)
    _keys("inputs", given, KEYS)
    try:
        return measure.Guest(
            ovmf_hash=_hash("ovmf_hash", given["ovmf_hash"], 48),
            ovmf_sections=_sections(given["ovmf_sections"]),
            sev_es_reset_eip=given["sev_es_reset_eip"],
            sev_hashes_table_gpa=given["sev_hashes_table_gpa"],
            vcpus=given["vcpus"],
            vcpu_sig=measure.processor(given["vcpu_type"]),
            kernel=measure.Kernel(
                kernel_hash=_hash("kernel_hash", given["kernel_hash"], 32),
                initrd_hash=_hash("initrd_hash", given["initrd_hash"], 32),
                cmdline_hash=measure.cmdline_hash("base_cmdline", given["base_cmdline"]),
            ),
            guest_features=given["guest_features"],
        )
    except ConfigError as error:
        raise error.under("inputs") from None


def _svsm(given: dict[str, Any]) -> dict[str, Any]:
    from privbench.defenses.tee import measure

    for name in _SNP_ONLY:
        require(name not in given, name, given.get(name), "not with --svsm: it isn't measured")
    require(("vars_size" in given) != ("vars_file" in given), "vars_size", given.get("vars_size"), "or vars_file, one")
    ovmf, signature = _machine(given)
    svsm, size = _image("svsm", given["svsm"]), given.get("vars_size")
    if size is None:
        size = _regular("vars_file", given["vars_file"], fw.LARGEST)
    digest = measure.svsm_digest(ovmf, svsm, size, given["vcpus"], signature).hex()
    shown = None if signature is None else hex(signature)
    return {"schema": 1, "mode": "snp:svsm", "measurement": digest, "vcpus": given["vcpus"], "vcpu_sig": shown}


def _machine(given: dict[str, Any]) -> tuple[fw.Image, int | None]:
    from privbench.defenses.tee import measure

    for name, what in (("ovmf", "an OVMF image, or --inputs"), ("vcpus", "the number of virtual processors")):
        require(name in given, name, None, what)
    parts = [given.get(f"vcpu_{name}") for name in ("type", "sig", "family", "model", "stepping")]
    return _image("ovmf", given["ovmf"]), measure.processor(*parts)


def _kernel(given: dict[str, Any]) -> "Kernel | None":
    from privbench.defenses.tee import measure

    if "kernel" not in given:
        for name in ("initrd", "append"):
            require(name not in given, name, given.get(name), "only together with --kernel")
        return None
    hashes = {f"{name}_hash": _sha256(name, given[name]) for name in ("kernel", "initrd") if name in given}
    return measure.Kernel(**hashes, cmdline_hash=measure.cmdline_hash("append", given.get("append", "")))


def _sections(given: Any) -> tuple[fw.Section, ...]:
    require(isinstance(given, list), "ovmf_sections", given, "a list of sections")
    sections = []
    for number, one in enumerate(given):
        where = f"ovmf_sections[{number}]"
        require(isinstance(one, dict), where, one, "an object with gpa, size and section_type")
        _keys(where, one, ("gpa", "size", "section_type"))
        try:
            sections.append(fw.Section(**one))
        except ConfigError as error:
            raise error.under(where) from None
    return tuple(sections)


def _keys(where: str, given: dict[str, Any], known: tuple[str, ...]) -> None:
    for name in known:
        require(name in given, f"{where}.{name}", "missing", f"the keys {', '.join(known)}")
    for name, value in given.items():
        require(name in known, f"{where}.{name[:_LONGEST]}", value, f"an unknown key; known are {', '.join(known)}")


def _hash(name: str, text: Any, length: int) -> bytes:
    raw = hexadecimal(name, text)
    require(len(raw) == length, name, text, f"{2 * length} hexadecimal digits")
    return raw


def _integer(name: str, text: str) -> int:
    try:
        # Python refuses to print integers of thousands of digits.
        return int(text if len(text) < _LONGEST else "", 0)
    except ValueError:
        raise ConfigError(name, text, "an integer, such as 4 or 0x800f12") from None


def _json(path: Path) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        require(len(dict(pairs)) == len(pairs), "inputs", str(path), "each key of an object only once")
        return dict(pairs)

    try:
        return json.loads(_read("inputs", path, _LARGEST_JSON), object_pairs_hook=once)
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError("inputs", str(path), f"not JSON: {error}") from None


def _image(name: str, path: str) -> fw.Image:
    try:
        return fw.parse(_read(name, path, fw.LARGEST))
    except Malformed as error:
        raise ConfigError(name, path, str(error)) from None


def _sha256(name: str, path: str) -> bytes:
    _regular(name, path, _LARGEST_FILE)
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise ConfigError(name, path, error.strerror or str(error)) from None


def _read(name: str, path: str | Path, most: int) -> bytes:
    _regular(name, path, most)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(name, str(path), error.strerror or str(error)) from None


def _regular(name: str, path: str | Path, most: int) -> int:
    """The size in bytes of a file that is safe to read to its end: not a device or a pipe, and not huge."""
    try:
        found = Path(path).stat()
    except (OSError, ValueError) as error:
        raise ConfigError(name, str(path), getattr(error, "strerror", None) or str(error)) from None
    fits = stat.S_ISREG(found.st_mode) and 0 < found.st_size <= most
    require(fits, name, str(path), f"a regular file of 1 to {most} bytes")
    return found.st_size
