"""``privbench overhead plan``: write what it takes to measure."""

import argparse
import sys
from dataclasses import MISSING, fields
from pathlib import Path

from privbench.benchmarks.conform import ConfigError
from privbench.benchmarks.overhead.plan_arms import ARMS, choose
from privbench.benchmarks.overhead.plan_machine import PAGES, Machine

DONE, INVALID, BAD_INPUT = 0, 1, 2

DESCRIPTION = """\
Write what a person needs to take the arms of an overhead measurement on a host with AMD SEV-SNP: cloud-init, libvirt
domains, QEMU command lines, OpenStack flavors and image properties, a schedule of boots and the scripts that follow it.
Domains are held against libvirt's schema where it is installed (LIBVIRT_SCHEMAS, or the usual place).

example:
  privbench overhead plan --out plan --cpus 8-15 --memory 32768 --hugepages 1G
"""

HELP = {
    "cpus": "the host's processors for the guest: 8-15 or 8,10,12",
    "node": "NUMA node of the guest's memory",
    "memory": "of the guest, MiB",
    "hugepages": ", ".join(PAGES),
    "cpu": "QEMU's processor model, or host",
    "machine": "QEMU's machine type",
    "firmware": "OVMF for all arms, on the host",
    "kernel": "of the guest, on the host",
    "initrd": "of the guest, on the host",
    "append": "the guest's kernel command line",
    "image": "the prepared disk, on the host",
    "cbitpos": "place of the encryption bit",
    "reduced_phys_bits": "address bits lost to encryption",
    "port": "of the host's, forwarded to the guest's SSH",
    "repeats": "of each workload in a boot",
}


def plan(arguments: list[str]) -> int:
    """0 when written; 1 when libvirt's schema refuses a domain; 2 for bad input."""
    options = _parser().parse_args(arguments)
    from privbench.benchmarks.overhead.plan import Plan, write
    from privbench.benchmarks.overhead.plan_schema import schemas, validate

    try:
        schemas()
        machine = Machine(**{name: getattr(options, name) for name in HELP})
        written = write(Plan(machine, choose(options.arms), options.boots, options.seed), options.out)
    except (ConfigError, OSError) as error:
        print(f"privbench overhead plan: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    for path in written:
        print(path)
    found = validate(path for path in written if path.suffix == ".xml")
    for one in found:
        print(f"{one.outcome:<12} {one.file}: {one.why}", file=sys.stderr)
    return INVALID if any(one.outcome == "invalid" for one in found) else DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="privbench overhead plan",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    names = ",".join(a.name for a in ARMS)
    parser.add_argument("--arms", default=names, metavar="A,B", help=f"default: {names}")
    parser.add_argument("--boots", type=int, default=6, metavar="N", help="of each arm, even (default: 6)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the order of boots (default: 0)")
    for field in fields(Machine):
        assert field.default is not MISSING
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(field.default),
            default=field.default,
            metavar="N" if isinstance(field.default, int) else "X",
            help=f"{HELP[field.name]} (default: {field.default})",
        )
    return parser
