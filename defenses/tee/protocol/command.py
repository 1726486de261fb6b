"""``privbench attest receipt verify``: the chain of a run, verified offline, and what it cannot show."""

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from privbench.benchmarks.build import ConfigError, require
from privbench.defenses.tee import certificates
from privbench.defenses.tee import policy as policies
from privbench.defenses.tee.protocol.agreed import load
from privbench.defenses.tee.protocol.audit import Audit, audit
from privbench.defenses.tee.protocol.opening import Head
from privbench.defenses.tee.protocol.rounds import Round
from privbench.defenses.tee.report import Malformed
from privbench.defenses.tee.verdict import Check

ACCEPTED, REFUSED, BAD_INPUT = 0, 1, 2
INSIDE = Path("artifacts") / "attestation"
"""Where a run's folder holds its attestation folder."""
_SHOWN = 5
"""Rounds whose failures of one check are printed; the rest is counted."""
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def add(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``receipt verify`` to the actions of ``privbench attest``."""
    receipt = actions.add_parser("receipt", help="verify the receipts of a run")
    verbs = receipt.add_subparsers(dest="verb", required=True, metavar="VERB")
    check = verbs.add_parser("verify", help="verify the whole chain of a run, and say what it cannot show")
    check.add_argument("folder", type=Path, metavar="DIR", help="a run's folder, or its attestation folder")
    check.add_argument("--json", action="store_true")
    check.add_argument("--head", metavar="ROUND:HEX", help="a receipt's digest that you kept: shows a rollback")
    check.add_argument("--model", type=Path, metavar="FILE", help="the final model, float32, little-endian")
    check.add_argument("--root", type=Path, nargs="+", metavar="FILE", help="trust these root certificates' keys alone")
    check.add_argument("--at", metavar="RFC3339", help="the time at which certificates must be valid (default: now)")
    check.add_argument("--tcb-floor", metavar="advisory|none|FILE", help="least patch levels (default: advisory)")
    check.add_argument("--allow", nargs="+", default=[], metavar="NAME", help=", ".join(policies.ALLOW))
    check.add_argument("--any-host-data", action="store_true", help="don't demand it of a software platform either")
    check.add_argument("--last-epsilon", action="store_true", help="recompute the last round's epsilon alone")
    check.add_argument("--auditor-key", type=Path, metavar="FILE", help="opens full receipts: an X25519 key's 32 bytes")
    check.add_argument(
        "--recipient-key", type=Path, metavar="FILE", help="for --model under a sealed downlink: 32 bytes"
    )


def run(options: argparse.Namespace) -> int:
    """Verify and print; 0 if every check holds, 1 if one fails, 2 with one line for bad usage."""
    try:
        found = _audit(options)
    except (ConfigError, OSError) as error:
        print(f"privbench attest: {_escaped(' '.join(str(error).split()))}", file=sys.stderr)
        return BAD_INPUT
    if options.json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        for line in lines(found):
            print(line)
    return ACCEPTED if found.accepted else REFUSED


def lines(found: Audit) -> Iterator[str]:
    """The audit for a reader: checks, rounds, verdict, and what it cannot show."""
    for check in found.checks.checks:
        yield _line(check.status, check.name, check.reason)
    yield from _grouped(found.rounds)
    if found.rounds:
        yield ""
        yield f"{'round':>5} {'attempt':>7} {'invited':>7} {'accepted':>8}  epsilon"
        yield from map(_row, found.rounds)
    yield ""
    head = found.head
    if head.round and head.digest:
        yield f"head: {head.round}:{head.digest.hex()} (keep it, for --head)"
    yield f"{'accepted' if found.accepted else 'refused'}: assurance {found.assurance}"
    if found.cannot_show:
        yield ""
        yield "What this cannot show:"
        yield from (f"- {_escaped(sentence)}" for sentence in found.cannot_show)


def _audit(options: argparse.Namespace) -> Audit:
    floor: Any = options.tcb_floor or "advisory"
    if options.model:
        require(options.model.is_file(), "model", str(options.model), "a file")
    return audit(
        _folder(options.folder),
        roots=[_root(path) for path in options.root] if options.root else None,
        at=_time(options.at),
        tcb_floor=floor if floor in ("advisory", "none") else policies.read_floors(Path(floor)),
        allow=options.allow,
        host_data=False if options.any_host_data else None,
        head=_head(options.head) if options.head else None,
        model=options.model,
        every_epsilon=not options.last_epsilon,
        auditor=_key("auditor_key", options.auditor_key),
        recipient=_key("recipient_key", options.recipient_key),
    )


def _folder(path: Path) -> Path:
    inside = path / INSIDE
    require(path.is_dir(), "DIR", str(path), "a folder")
    if inside.is_dir():
        return inside
    known = ("countersignatures.json", "certs", "round-0001.receipt.json")
    require(any((path / n).exists() for n in known), "DIR", str(path), f"no receipts here, nor in {INSIDE}")
    return path


def _head(text: str) -> Head:
    number, _, digits = text.partition(":")
    sound = re.fullmatch(r"[0-9]{1,9}", number) and re.fullmatch(r"[0-9a-fA-F]{64}", digits)
    require(bool(sound), "head", text, "a round and its receipt's digest, such as 12:9f86d0...")
    return Head(int(number), bytes.fromhex(digits))


def _time(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        if not _RFC3339.fullmatch(text):
            raise ValueError
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ConfigError("at", text, "a time such as 2026-01-31T12:00:00Z") from None


def _root(path: Path) -> certificates.Certificate:
    try:
        found = certificates.load(_read("root", path, certificates.LARGEST))
    except Malformed as error:
        raise ConfigError("root", str(path), str(error)) from None
    require(len(found) == 1, "root", str(path), f"one root certificate, this has {len(found)}")
    return found[0]


def _read(name: str, path: Path, most: int) -> bytes:
    try:
        return load(path, most)
    except (Malformed, ValueError) as error:
        raise ConfigError(name, str(path), str(error)) from None


def _key(name: str, path: Path | None) -> X25519PrivateKey | None:
    if path is None:
        return None
    raw = _read(name, path, 64)
    require(len(raw) == 32, name, str(path), "a file of 32 bytes")
    return X25519PrivateKey.from_private_bytes(raw)


def _grouped(rounds: list[Round]) -> Iterator[str]:
    """The checks that hold in every round, together; of another, a line for each round where it fails."""
    by_name: dict[str, list[tuple[int, Check]]] = {}
    for one in rounds:
        for check in one.checks.checks:
            by_name.setdefault(check.name, []).append((one.number, check))
    whole = [n for n, held in by_name.items() if len(held) == len(rounds) == sum(c.status == "pass" for _, c in held)]
    for line in textwrap.wrap(", ".join(whole), 100):
        yield _line("pass", "every round", line)
    for name, held in by_name.items():
        if name in whole:
            continue
        failed = [(number, check) for number, check in held if check.status == "fail"]
        for number, check in failed[:_SHOWN]:
            yield _line("fail", name, f"round {number}: {check.reason}")
        if len(failed) > _SHOWN:
            yield _line("fail", name, f"and in {len(failed) - _SHOWN} more rounds")
        if passed := sum(check.status == "pass" for _, check in held):
            yield _line("pass", name, f"in {_counted(passed)}")
        skipped = [check for _, check in held if check.status == "not-applicable"]
        if skipped:
            yield _line("not-applicable", name, f"in {_counted(len(skipped))}: {skipped[0].reason}")


def _row(one: Round) -> str:
    receipt = one.receipt
    if receipt is None:
        return f"{one.number:>5} {'?':>7} {'?':>7} {'?':>8}  ?"
    shown = "; ".join(
        f"{'infinite' if s['epsilon'] is None else format(s['epsilon'], 'g')} ({s['unit']}, {s['adversary']})"
        for s in receipt.statements
    )
    numbers = f"{one.number:>5} {receipt.attempt:>7} {receipt.invited:>7} {receipt.accepted:>8}"
    return f"{numbers}  {_escaped(shown) or 'no statement'}"


def _counted(rounds: int) -> str:
    return f"{rounds} round{'s' if rounds != 1 else ''}"


def _line(status: str, name: str, reason: str) -> str:
    return f"{status:<15} {_escaped(name):<22} {_escaped(reason)}".rstrip()


def _escaped(text: str) -> str:
    # Reasons quote what lies in the folder, which may come from anybody: no line breaks or escape codes get out.
    return text.encode("unicode_escape").decode()
