"""``privbench attest``: reports and their measurements, and receipts that rest on them. Needs no torch to start."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from privbench.benchmarks.build import ConfigError
from privbench.defenses.tee import certificates as certs
from privbench.defenses.tee import collect, decision_command, gpu_command, inputs
from privbench.defenses.tee import policy as policies
from privbench.defenses.tee.policy import ALLOW, ANY, Policy
from privbench.defenses.tee.protocol import command as receipt
from privbench.defenses.tee.report import SIZE, Malformed, parse, violations
from privbench.defenses.tee.verdict import Verdict
from privbench.defenses.tee.verify import verify

ACCEPTED, REFUSED, BAD_INPUT = 0, 1, 2
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


def attest(arguments: Sequence[str]) -> int:
    """Run ``privbench attest``; 0 for an accepted report, 1 for a refused one, 2 for bad usage."""
    options = _parser().parse_args(list(arguments))
    try:
        return ACTIONS[options.action](options)
    except (ConfigError, OSError) as error:
        print(f"privbench attest: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="privbench attest", description="AMD SEV-SNP attestation reports.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", help="print every field of a report; verifies nothing")
    check = actions.add_parser("verify", help="verify a report against certificates and a policy")
    for one in (show, check):
        one.add_argument("--report", type=Path, required=True, metavar="FILE", help="the report's 1184 bytes")
        one.add_argument("--json", action="store_true")
    inputs.add(actions)
    collect.add(actions)
    receipt.add(actions)
    decision_command.add(actions)
    gpu_command.add(actions)
    files = "files in any order, or folders"
    check.add_argument("--certs", type=Path, nargs="+", action="extend", required=True, metavar="PATH", help=files)
    check.add_argument("--policy", type=Path, metavar="FILE", help="YAML; options below override its fields")
    measured = check.add_mutually_exclusive_group()
    measured.add_argument("--measurement", nargs="+", action="extend", metavar="HEX", help="trusted launch digests")
    measured.add_argument("--any-measurement", action="store_true")
    bound = check.add_mutually_exclusive_group()
    bound.add_argument("--report-data", metavar="HEX", help="the 64 bytes of REPORT_DATA")
    bound.add_argument("--any-report-data", action="store_true")
    check.add_argument("--vmpl", type=int, metavar="N", help="0 to 3")
    check.add_argument("--allow", nargs="+", action="extend", default=[], metavar="NAME", help=", ".join(ALLOW))
    check.add_argument("--tcb-floor", metavar="advisory|none|FILE", help="least patch levels (default: advisory)")
    check.add_argument("--at", metavar="RFC3339", help="the time of verification (default: now)")
    check.add_argument("--root", type=Path, metavar="FILE", help="trust this root certificate's key instead of AMD's")
    check.add_argument("--crl", type=Path, metavar="FILE", help="certificate revocation list")
    return parser


def _verify(options: argparse.Namespace) -> int:
    policy, at, root = _policy(options), _time(options.at), _root(options.root)
    crl = _read(options.crl, "crl") if options.crl else None
    material = [raw for path in options.certs for raw in _material(path)]
    verdict = verify(_read(options.report, "report", SIZE + 1), material, policy, at, root, crl)
    if options.json:
        print(json.dumps({**verdict.as_dict(), "at": at.isoformat()}, indent=2))
    else:
        _print(verdict)
    return ACCEPTED if verdict.accepted else REFUSED


def _show(options: argparse.Namespace) -> int:
    try:
        report = parse(_read(options.report, "report", SIZE + 1))
    except Malformed as error:
        print(f"privbench attest: report={options.report}: {error}", file=sys.stderr)
        return REFUSED
    broken = violations(report)
    if options.json:
        print(json.dumps({"report": report.as_dict(), "violations": broken}, indent=2))
        return ACCEPTED
    for name, value in report.as_dict().items():
        print(f"{name:<26} {', '.join(value) if isinstance(value, list) else value}")
    for fault in broken:
        print(f"not well-formed            {fault}")
    print("not verified: this only shows what the bytes say")
    return ACCEPTED


def _policy(options: argparse.Namespace) -> Policy:
    fields: dict[str, Any] = policies.read(options.policy) if options.policy else {}
    if options.any_measurement or options.measurement:
        given = [policies.hexadecimal("measurement", one) for one in options.measurement or []]
        fields["measurements"] = ANY if options.any_measurement else tuple(given)
    if options.any_report_data or options.report_data is not None:
        fields.pop("nonce", None)
        fields["report_data"] = (
            ANY if options.any_report_data else policies.hexadecimal("report_data", options.report_data)
        )
    if options.vmpl is not None:
        fields["vmpl"] = options.vmpl
    fields["allow"] = frozenset(fields.get("allow", ())) | frozenset(options.allow)
    if options.tcb_floor in ("advisory", "none"):
        fields["tcb_floor"] = options.tcb_floor
    elif options.tcb_floor is not None:
        fields["tcb_floor"] = policies.read_floors(Path(options.tcb_floor))
    return Policy(**fields)


def _time(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        if not _RFC3339.fullmatch(text):
            raise ValueError
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ConfigError("at", text, "a time such as 2026-01-31T12:00:00Z") from None


def _root(path: Path | None) -> certs.Certificate | None:
    if path is None:
        return None
    try:
        found = certs.load(_read(path, "root"))
    except Malformed as error:
        raise ConfigError("root", str(path), str(error)) from None
    if len(found) != 1:
        raise ConfigError("root", str(path), f"one root certificate, this has {len(found)}")
    return found[0]


def _material(path: Path) -> list[bytes]:
    if not path.is_dir():
        return [_read(path, "certs")]
    found = []
    for file in sorted(path.iterdir()):
        raw = _read(file, "certs") if file.is_file() else b""
        if not certs.recognised(raw):
            continue
        try:
            certs.load(raw)
            found.append(raw)
        except Malformed as error:  # in a folder that isn't all evidence; what is named by itself has to be right
            print(f"privbench attest: passed over {file}: {error}", file=sys.stderr)
    return found


def _read(path: Path, name: str, most: int = certs.LARGEST + 1) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(most)
    except (OSError, ValueError) as error:
        raise ConfigError(name, str(path), getattr(error, "strerror", None) or str(error)) from None


def _print(verdict: Verdict) -> None:
    for check in verdict.checks:
        # Reasons quote names from certificates of unknown origin: no line breaks or escape codes of theirs get out.
        print(f"{check.status:<15} {check.name:<20} {check.reason.encode('unicode_escape').decode()}")
    outcome = "accepted" if verdict.accepted else "refused"
    print(f"{outcome}: assurance {verdict.assurance}, product {verdict.product or 'unknown'}")


ACTIONS = {
    "show": _show,
    "verify": _verify,
    "measure": inputs.run,
    "collect": collect.run,
    "receipt": receipt.run,
    "decision": decision_command.run,
    "gpu": gpu_command.run_gpu,
    "bind": gpu_command.run_bind,
}
