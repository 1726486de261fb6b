"""What comes out of a verification: every check with pass, fail or not-applicable, and why.

A report is accepted when no check fails. ``assurance`` then says what stands behind it: ``hardware`` for AMD's pinned
root keys, ``software`` for the software platform (it proves nothing about hardware), ``custom`` for another root that
the caller named. A refused report has ``none``.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from privbench.defenses.tee.report import Report

SCHEMA = 1
Status = Literal["pass", "fail", "not-applicable"]


@dataclass(frozen=True)
class Check:
    name: str
    status: Status
    reason: str


@dataclass
class Verdict:
    """What came out. ``report`` is None when the bytes aren't a report."""

    report: Report | None = None
    product: str | None = None
    custom: bool = False
    software: bool = False
    checks: list[Check] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        return [c.name for c in self.checks if c.status == "fail"]

    @property
    def accepted(self) -> bool:
        return bool(self.checks) and not self.failed

    @property
    def assurance(self) -> str:
        if not self.accepted:
            return "none"
        if self.software:
            return "software"
        return "custom" if self.custom else "hardware"

    def as_dict(self) -> dict[str, Any]:
        """The stable schema of ``privbench attest verify --json``."""
        return {
            "schema": SCHEMA,
            "verdict": "accepted" if self.accepted else "refused",
            "assurance": self.assurance,
            "product": self.product,
            "checks": [{"name": c.name, "status": c.status, "reason": c.reason} for c in self.checks],
            "report": self.report.as_dict() if self.report else None,
        }

    def hold(self, name: str, fault: str | None, reason: str) -> None:
        """Record a check: failed for ``fault``, or passed for ``reason``."""
        self.checks.append(Check(name, "fail" if fault else "pass", fault or reason))

    def skip(self, name: str, reason: str) -> None:
        self.checks.append(Check(name, "not-applicable", reason))
