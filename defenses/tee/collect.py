"""``privbench attest collect``: ask the guest that this runs in for a report, and write it for ``attest verify``."""

import argparse
import json
import re
import sys
from pathlib import Path

from privbench.benchmarks.build import ConfigError, require
from privbench.defenses.tee import certificates as certs
from privbench.defenses.tee.platforms.keyservice import PRODUCTS
from privbench.defenses.tee.platforms.platform import Evidence, Unavailable
from privbench.defenses.tee.platforms.sev_snp import SEVSNP
from privbench.defenses.tee.policy import hexadecimal

COLLECTED, UNAVAILABLE, BAD_USAGE = 0, 1, 2


def add(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``collect`` to the actions of ``privbench attest``."""
    collect = actions.add_parser("collect", help="get a report and its certificates, inside an SEV-SNP guest")
    collect.add_argument("--report-data", required=True, metavar="HEX", help="the 64 bytes that REPORT_DATA has to be")
    collect.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder that is empty or not there")
    collect.add_argument("--vmpl", type=int, metavar="N", help="0 to 3 (default: the kernel's, 0)")
    collect.add_argument("--cache", metavar="DIR", help="certificates (default: privbench/amd in the user's cache)")
    collect.add_argument("--network", action="store_true", help="allow asking AMD's key service for certificates")
    collect.add_argument("--product", metavar="NAME", help=f"{', '.join(PRODUCTS)}: where a report doesn't say")
    collect.add_argument("--json", action="store_true")


def run(options: argparse.Namespace) -> int:
    """Write ``report.bin`` and ``certs/*.der`` under ``--out``; 0 when done, 1 without a report, 2 for bad usage."""
    try:
        report_data = hexadecimal("report_data", options.report_data)
        platform = SEVSNP(vmpl=options.vmpl, cache=options.cache, network=options.network, product=options.product)
        free = not options.out.exists() or (options.out.is_dir() and not any(options.out.iterdir()))
        require(free, "out", str(options.out), "a folder that is empty or not there")
        written = _write(options.out, platform.evidence(report_data))
    except Unavailable as error:
        print(f"privbench attest: no evidence: {error}", file=sys.stderr)
        return UNAVAILABLE
    except (ConfigError, OSError) as error:
        print(f"privbench attest: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_USAGE
    if options.json:
        report, *certificates = written
        shown = {"schema": 1, "platform": platform.name, "report": report, "certificates": certificates}
        print(json.dumps({**shown, "report_data": report_data.hex()}, indent=2))
    else:
        print("\n".join(written))
        print("not verified: privbench attest verify does that, best elsewhere")
    return COLLECTED


def _write(out: Path, evidence: Evidence) -> list[str]:
    folder = out / "certs"
    folder.mkdir(parents=True, exist_ok=True)
    (out / "report.bin").write_bytes(evidence.report)
    written = [out / "report.bin"]
    for n, one in enumerate(c for raw in evidence.certificates for c in certs.load(raw)):
        # The name is what the host put into the certificate.
        name = re.sub(r"[^A-Za-z0-9-]", "_", one.name)[:64]
        written.append(folder / f"{n}-{name.lower()}.der")
        written[-1].write_bytes(one.der)
    return [str(path) for path in written]
