"""Verify the whole chain of a run from its folder, and say what it cannot show.

The folder holds ``manifest.json``, ``countersignatures.json``, ``certs/``, ``roots/`` (of software platforms), and of
each round ``round-0001.report.bin``, ``round-0001.receipt.json`` and, for auditors, ``round-0001.full-0.bin``. Other
files are passed over. No number of a receipt is trusted that can be recomputed: epsilon is.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from privbench.defenses.tee import certificates, chain
from privbench.defenses.tee.certificates import Certificate
from privbench.defenses.tee.policy import ANY, Floors, Policy
from privbench.defenses.tee.protocol import agreed, final, limits
from privbench.defenses.tee.protocol.agreed import Agreed, load
from privbench.defenses.tee.protocol.opening import Head
from privbench.defenses.tee.protocol.rounds import Auditing, Round
from privbench.defenses.tee.report import Malformed
from privbench.defenses.tee.verdict import Verdict

SCHEMA = 1
ORDER = ("none", "software", "custom", "hardware")
"""Assurances, weakest first."""
_FILE = re.compile(r"round-(\d{4,9})\.(report\.bin|receipt\.json|full-\d+\.bin)", re.ASCII)


@dataclass
class Audit:
    """What came out. ``checks`` are those of the whole chain; each round has its own."""

    at: datetime
    checks: Verdict = field(default_factory=Verdict)
    rounds: list[Round] = field(default_factory=list)
    agreed: Agreed | None = None
    cannot_show: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        """Names of the checks that failed, each once."""
        every = [self.checks, *(r.checks for r in self.rounds)]
        return list(dict.fromkeys(name for checks in every for name in checks.failed))

    @property
    def accepted(self) -> bool:
        return self.checks.accepted and all(r.checks.accepted for r in self.rounds)

    @property
    def assurance(self) -> str:
        """The weakest round's; ``none`` if any check fails."""
        if not self.accepted or not self.rounds:
            return "none"
        return min((r.checks.assurance for r in self.rounds), key=ORDER.index)

    @property
    def head(self) -> Head:
        """The newest receipt: what a client or an auditor keeps, to see a rollback."""
        return Head(self.rounds[-1].number, self.rounds[-1].digest) if self.rounds else Head()

    def as_dict(self) -> dict[str, Any]:
        """The stable schema of ``privbench attest receipt verify --json``."""
        manifest = self.agreed.manifest if self.agreed else None
        return {
            "schema": SCHEMA,
            "verdict": "accepted" if self.accepted else "refused",
            "assurance": self.assurance,
            "run": manifest.run if manifest else None,
            "platform": manifest.platform if manifest else None,
            "manifest": self.agreed.digest.hex() if self.agreed else None,
            "at": self.at.isoformat(),
            "head": {"round": self.head.round, "digest": self.head.digest.hex()},
            "checks": self.checks.as_dict()["checks"],
            "rounds": [
                {
                    "round": r.number,
                    "receipt": r.receipt.__dict__ if r.receipt else None,
                    "assurance": r.checks.assurance,
                    "checks": r.checks.as_dict()["checks"],
                }
                for r in self.rounds
            ],
            "cannot_show": self.cannot_show,
        }


def audit(
    folder: Path,
    roots: Sequence[Certificate] | None = None,
    at: datetime | None = None,
    *,
    tcb_floor: str | Floors = "advisory",
    allow: Iterable[str] = (),
    host_data: bool | None = True,
    head: Head | None = None,
    model: Path | None = None,
    every_epsilon: bool = True,
    auditor: X25519PrivateKey | None = None,
    recipient: X25519PrivateKey | None = None,
) -> Audit:
    """Verify the chain in ``folder``, offline. Never raises on what lies there: what is malformed is refused.

    Args:
        folder: the run's attestation folder.
        roots: trust these certificates' keys. None: AMD's pinned keys, and of a software platform those in ``roots/``,
            which prove nothing, as the assurance then says.
        at: the time at which certificates must be valid, with its offset from UTC; None is now.
        tcb_floor, allow: as in :class:`~privbench.defenses.tee.policy.Policy`.
        host_data: HOST_DATA must be the manifest's digest. False waives it, for hosts that can't set it; None does so
            for every platform but ``software``.
        head: a receipt that the caller has kept; a chain without it was rolled back or is another.
        model: file of the final model's float32 bytes, little-endian.
        every_epsilon: recompute every round's epsilon. With sampling that takes 0.2 s a round and more; False
            recomputes the last.
        auditor: opens the full receipts that are sealed to it.
        recipient: opens the salt of the final model's digest, where the downlink was sealed.

    Raises:
        OSError: ``model`` can't be read.
        ConfigError: what the caller demands is no policy.
        ValueError: ``at`` without its offset.
    """
    found = Audit(at=at or datetime.now(UTC))
    if found.at.tzinfo is None:
        raise ValueError(f"at={at}: a time with its offset from UTC")
    known = found.agreed = agreed.read(folder, found.checks)
    if known is None:
        return found
    software = known.manifest.platform == "software"
    demanded = software if host_data is None else host_data
    policy = Policy(
        measurements=tuple(bytes.fromhex(m) for m in known.manifest.measurements),
        report_data=ANY,
        vmpl=0,
        allow=frozenset(allow) - {"software-tee"} | ({"software-tee"} if software else frozenset()),
        tcb_floor=tcb_floor,
        host_data=known.digest if demanded else None,
    )
    numbers = _numbers(folder, found.checks, known.rounds)
    trusted: Sequence[Certificate | None] = roots or [None]
    if software and roots is None:
        trusted = _roots(folder, found.checks)
    material = _material(folder, trusted, found.checks)
    auditing = Auditing(folder, known, policy, trusted, material, found.at, auditor)
    for number in numbers:
        before = found.rounds[-1] if found.rounds else None
        whole = number == len(found.rounds) + 1  # beyond a gap there is nothing to recompute from
        found.rounds.append(auditing.round(number, before, whole and (every_epsilon or number == numbers[-1])))
    _end(found, head)
    last = found.rounds[-1].receipt if found.rounds else None
    final.compare(found.checks, known, last, folder, model, recipient)
    found.cannot_show = limits.cannot_show(found, policy, head is not None, every_epsilon)
    if auditor is None and known.manifest.auditors:
        found.checks.skip("full_receipts", "sealed to auditors; no auditor's key was given")
    return found


def assurance(folder: Path, at: datetime | None = None) -> str:
    """What stands behind a run's chain, from its bytes: ``hardware``, ``custom``, ``software`` or ``none``."""
    return audit(folder, at=at, host_data=None, every_epsilon=False).assurance


def _numbers(folder: Path, checks: Verdict, rounds: int) -> list[int]:
    """The rounds that have receipts, in order; a report without one is of a round that didn't end."""
    try:
        names = sorted(p.name for p in folder.iterdir() if p.name.startswith("round-") and p.suffix != ".tmp")
    except OSError:
        names = []
    matches = {name: _FILE.fullmatch(name) for name in names}
    stray = [name for name, match in matches.items() if not match or match[1] != f"{int(match[1]):04d}"]
    checks.hold("layout", f"files of no round: {', '.join(stray[:5])}" if stray else None, "each file is of one round")
    numbers = sorted(int(m[1]) for m in matches.values() if m and m[2] == "receipt.json")
    missing = next((n for n, found in enumerate(numbers, 1) if n != found), None)
    fault = None if numbers else "no round has a receipt"
    if missing is not None:
        fault = f"round {missing} has no receipt, round {numbers[-1]} has one"
    elif len(numbers) > rounds:
        fault = f"{len(numbers)} rounds, {rounds} were agreed"
    checks.hold("rounds", fault, f"1 to {len(numbers)}, each once")
    if len(numbers) == rounds:
        checks.hold("finished", None, f"{rounds} rounds, as agreed")
    else:
        checks.skip("finished", f"unfinished: {len(numbers)} of {rounds} rounds")
    return numbers


def _end(found: Audit, head: Head | None) -> None:
    """Compare the chain's end with what the caller knows of it."""
    held = {r.number: r.digest for r in found.rounds}
    if head is None:
        found.checks.skip("rollback", "no head of this chain was kept to compare with")
    elif head.round == 0:
        found.checks.hold("rollback", None, "the head that was kept is of no round")
    elif head.round not in held:
        fault = f"round {head.round}, which had a receipt, is not in the chain: it was rolled back"
        found.checks.hold("rollback", fault, "")
    else:
        fault = f"round {head.round} has another receipt than the one that was kept"
        kept = f"it holds the receipt of round {head.round} that was kept"
        found.checks.hold("rollback", None if held[head.round] == head.digest else fault, kept)


def _files(folder: Path, checks: Verdict, name: str) -> list[bytes]:
    """The files of a folder, a check of its name failing for what can't be read."""
    try:
        paths = sorted(p for p in folder.iterdir() if p.suffix != ".tmp") if folder.is_dir() else []
        found = [load(p, certificates.LARGEST) for p in paths[: certificates.MOST + 1]]
    except (Malformed, OSError) as error:
        checks.hold(name, str(error), "")
        return []
    checks.hold(name, None if len(found) <= certificates.MOST else "too many files", f"{len(found)} files")
    return found


def _material(folder: Path, roots: Sequence[Certificate | None], checks: Verdict) -> list[bytes]:
    """The certificates at hand. One that none of them has issued was altered, or is of no run with this chain."""
    raw = _files(folder / "certs", checks, "certs")
    try:
        found = [c for one in raw for c in certificates.load(one)]
    except Malformed as error:
        checks.hold("certs", str(error), "")
        return raw
    issuers = [*found, *(r for r in roots if r is not None)]
    orphans = [c.name for c in dict.fromkeys(found) if not any(_issued(c, i) for i in issuers)]
    if orphans:
        checks.hold("certs", f"not issued by any certificate at hand: {', '.join(orphans[:5])}", "")
    return raw


def _issued(certificate: Certificate, issuer: Certificate) -> bool:
    if certificate.x509.issuer != issuer.x509.subject:
        return False
    try:
        certificate.x509.verify_directly_issued_by(issuer.x509)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _roots(folder: Path, checks: Verdict) -> list[Certificate]:
    roots = []
    for raw in _files(folder / "roots", checks, "roots"):
        try:
            (root,) = certificates.load(raw)
            fault = chain.signatures(chain.Chain(root, root, root))
        except ValueError as error:  # Malformed, or several in one file
            fault = str(error)
        else:
            roots.append(root)
        if fault:
            checks.hold("roots", f"a root certificate: {fault}", "")
    return roots
