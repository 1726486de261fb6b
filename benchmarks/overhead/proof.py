"""A record's digest in a report of the guest that it was taken in, and what that is worth when it is read.

The report shows that a guest asked for this digest: it binds the record to that guest. The times in it are that guest's
word, and without Secure TSC its host influences the clock by which they were taken.
"""

import base64
import binascii
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from privbench.defenses.tee import certificates as certs
from privbench.defenses.tee import software
from privbench.defenses.tee.certificates import Certificate
from privbench.defenses.tee.platforms.platform import Platform
from privbench.defenses.tee.policy import ANY, Policy
from privbench.defenses.tee.report import Malformed
from privbench.defenses.tee.verdict import Verdict
from privbench.defenses.tee.verify import verify

from privbench.benchmarks.overhead.record import Record, digest  # isort: skip

WAIVED = frozenset({"masked-chip-id"})
"""Hosts may hide which chip it is. Firmware levels aren't demanded either: whether a guest is protected is asked here,
not whether its provider keeps up with advisories."""


@dataclass(frozen=True)
class Proof:
    """What stands behind a record.

    Args:
        assurance: ``hardware`` (AMD's root keys), ``custom`` (a root that the caller named), ``software`` (an emulated
            platform, which proves nothing about a machine) or ``none``.
        reason: in words.
        verdict: of the report, if there is one.
    """

    assurance: str
    reason: str
    verdict: Verdict | None = None


def bind(record: Record, platform: Platform) -> Record:
    """The record with a report over its digest.

    Raises:
        Unavailable: the platform gives none.
    """
    evidence = platform.evidence(digest(record))
    parts = [base64.b64encode(raw).decode() for raw in (evidence.report, *evidence.certificates)]
    return {**record, "evidence": {"platform": platform.name, "report": parts[0], "certificates": parts[1:]}}


def proven(record: Record, at: datetime | None = None, root: Certificate | None = None) -> Proof:
    """What stands behind a record, from the bytes of its evidence alone: no other field has a say in it.

    Args:
        record: one that was checked.
        at: the time at which certificates have to be valid; now, if ``None``.
        root: trust this certificate's key instead of AMD's.
    """
    held: dict[str, Any] | None = record["evidence"]
    if held is None:
        return Proof("none", "no report came with it")
    try:
        report = base64.b64decode(held["report"], validate=True)
        material = [base64.b64decode(one, validate=True) for one in held["certificates"]]
    except (binascii.Error, ValueError):
        return Proof("none", "its evidence isn't base64")
    when, expected = at or datetime.now(UTC), digest(record)
    verdict = verify(report, material, _policy(expected, WAIVED), when, root)
    if verdict.accepted:
        return Proof(verdict.assurance, f"a report of {verdict.product} over this record's digest", verdict)
    own = None if root else _software_root(material)
    if own is not None:
        emulated = verify(report, material, _policy(expected, WAIVED | {"software-tee"}), when, own)
        if emulated.assurance == "software":
            return Proof("software", f"{software.LABEL}: emulated, which proves nothing about a machine", emulated)
    faults = "; ".join(f"{c.name}: {c.reason}" for c in verdict.checks if c.status == "fail")
    return Proof("none", f"its report is refused: {faults}", verdict)


def _policy(report_data: bytes, allow: frozenset[str]) -> Policy:
    return Policy(ANY, report_data, tcb_floor="none", allow=allow)


def _software_root(material: list[bytes]) -> Certificate | None:
    """The software platform's root key is made for one run: whoever emulates brings it along."""
    try:
        pool = [c for raw in material for c in certs.load(raw)]
    except Malformed:
        return None
    return next((c for c in pool if software.marked(c.x509) and c.x509.subject == c.x509.issuer), None)
