"""One round of a chain, audited: its receipt, its evidence, the link to the round before, and its numbers."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from privbench.defenses.tee.certificates import Certificate
from privbench.defenses.tee.policy import Policy
from privbench.defenses.tee.protocol import binding, receipts
from privbench.defenses.tee.protocol.agreed import Agreed, load, near
from privbench.defenses.tee.protocol.manifest import Refused
from privbench.defenses.tee.protocol.opening import FIRST
from privbench.defenses.tee.protocol.receipts import Receipt
from privbench.defenses.tee.report import SIGNED, SIZE, Malformed
from privbench.defenses.tee.verdict import Verdict
from privbench.defenses.tee.verify import verify

MOST_ATTEMPTS = 64
"""A round, on average; no run tries nearly as often."""


@dataclass
class Round:
    """One round: its checks, and its receipt if it can be read.

    Args:
        number: from its files' names.
        checks: with the report, once it verifies.
        receipt, digest: None and empty for one that is malformed.
        charged: attempts up to here, each of which epsilon counts.
    """

    number: int
    checks: Verdict = field(default_factory=Verdict)
    receipt: Receipt | None = None
    digest: bytes = b""
    charged: int = 0


@dataclass
class Auditing:
    """What the rounds of one audit share.

    Args:
        folder: where the files lie.
        agreed: what receipts are held to.
        policy: what is demanded of every report, but for its report data.
        roots: that are trusted; None stands for AMD's.
        certificates: all that are at hand.
        at: when they must be valid.
        auditor: opens full receipts; None leaves them closed.
    """

    folder: Path
    agreed: Agreed
    policy: Policy
    roots: Sequence[Certificate | None]
    certificates: Sequence[bytes]
    at: datetime
    auditor: X25519PrivateKey | None
    _used: set[str] = field(default_factory=set, init=False)

    def round(self, number: int, before: Round | None, epsilon: bool) -> Round:
        """Audit the round whose files bear ``number``.

        Args:
            before: the one before it in the folder.
            epsilon: recompute it.
        """
        done, stem = Round(number), f"round-{number:04d}"
        checks = done.checks
        try:
            envelope = load(self.folder / f"{stem}.receipt.json")
            receipt, payload = receipts.read(envelope)
        except (Malformed, Refused) as error:
            checks.hold("receipt_format", str(error), "")
            return done
        done.receipt, done.digest = receipt, hashlib.sha256(payload).digest()
        done.charged = (before.charged if before else 0) + receipt.attempt
        checks.hold("receipt_format", None, "an in-toto statement in a DSSE envelope, canonical")
        self._evidence(checks, receipt, f"{stem}.report.bin")
        try:
            receipts.verify_signature(envelope, bytes.fromhex(receipt.evidence["signing_key"]))
            checks.hold("receipt_signature", None, "by the signing key that the report binds")
        except Refused as error:
            checks.hold("receipt_signature", error.reason, "")
        self._chain(checks, receipt, number, before)
        self._cohort(checks, receipt)
        for name, value in self.agreed.expected.items():
            fault = f"{getattr(receipt, name)!r} is stated, {value!r} agreed"
            checks.hold(name, None if near(getattr(receipt, name), value) else fault, "as the manifest says")
        self._epsilon(checks, receipt, number, done.charged if epsilon else None)
        self._full(checks, receipt, done.digest, stem)
        return done

    def _evidence(self, checks: Verdict, receipt: Receipt, name: str) -> None:
        try:
            report = load(self.folder / name, SIZE)
        except Malformed as error:
            checks.hold("report", str(error), "")
            return
        verdict = self._verified(report, receipt)
        checks.report, checks.product = verdict.report, verdict.product
        checks.custom, checks.software = verdict.custom, verdict.software
        for check in verdict.checks:
            if check.status == "fail":
                checks.hold(f"report.{check.name}", check.reason, "")
        if verdict.accepted:
            checks.hold("report", None, "it verifies, and binds manifest, keys and nonces")
        if verdict.accepted and self.agreed.manifest.platform == "software":
            fault = None if verdict.software else "the manifest's platform is software, this evidence is not"
            checks.hold("platform", fault, "software, as the manifest says")
        fits = hashlib.sha256(report[:SIGNED]).hexdigest() == receipt.evidence["signed_sha256"]
        checks.hold("evidence", None if fits else "the receipt names another report", "the report that it names")
        key = receipt.evidence["kem_key"]
        checks.hold("kem_key", "an earlier round's: not erased" if key in self._used else None, "of this round alone")
        self._used.add(key)

    def _verified(self, report: bytes, receipt: Receipt) -> Verdict:
        """The verdict under the root that fits, of those that are trusted."""
        keys = (bytes.fromhex(receipt.evidence[n]) for n in ("kem_key", "signing_key", "nonce_root"))
        data = binding.report_data(binding.AGGREGATOR, self.agreed.digest, *keys)
        policy = replace(self.policy, report_data=data)
        refused: list[Verdict] = []
        for root in self.roots:
            verdict = verify(report, self.certificates, policy, self.at, root)
            if verdict.accepted:
                self.roots = [root, *(r for r in self.roots if r is not root)]  # the next round's, most likely
                return verdict
            refused.append(verdict)
        if not refused:
            refused.append(Verdict())
            refused[0].hold("root_key", "no root of a software platform is at hand", "")
        return min(refused, key=lambda v: len(v.failed))

    def _chain(self, checks: Verdict, receipt: Receipt, number: int, before: Round | None) -> None:
        fault = None if receipt.round == number else f"it is a receipt of round {receipt.round}"
        checks.hold("round", fault, f"{number}")
        manifest = self.agreed.manifest
        same = (receipt.run, receipt.manifest) == (manifest.run, self.agreed.digest.hex())
        checks.hold("run", None if same else f"of run {receipt.run!r} under manifest {receipt.manifest}", "this one")
        if number > 1 and (before is None or before.receipt is None or before.number != number - 1):
            for name in ("previous_receipt", "start_model"):
                checks.hold(name, f"there is no receipt of round {number - 1} to compare with", "")
            return
        last, start = (FIRST, manifest.model) if number == 1 or before is None else (before.digest, _model(before))
        fault = f"it follows {receipt.previous}, the receipt before it is {last.hex()}"
        checks.hold("previous_receipt", None if receipt.previous == last.hex() else fault, "the one before it")
        fault = f"it starts from {receipt.start_model}, the model before it is {start}"
        checks.hold("start_model", None if receipt.start_model == start else fault, "the one that was released before")

    def _cohort(self, checks: Verdict, receipt: Receipt) -> None:
        least, invited = self.agreed.manifest.least_cohort, receipt.invited
        fault = None if receipt.accepted >= least else f"{receipt.accepted} accepted, at least {least}"
        checks.hold("least_cohort", fault, f"at least {least}")
        fault = None if self.agreed.invited(invited) else f"{invited} invited can't have been drawn"
        if receipt.accepted > invited:
            fault = f"{receipt.accepted} accepted of {invited} invited"
        checks.hold("cohort", fault, "as many as are drawn, and no more accepted")
        messages = receipt.accepted + sum(receipt.refused.values())
        fault = None if len(receipt.inputs) == messages else f"{len(receipt.inputs)} for {messages} messages"
        checks.hold("inputs", fault, "a commitment for each message")

    def _epsilon(self, checks: Verdict, receipt: Receipt, number: int, charged: int | None) -> None:
        if not self.agreed.bound:
            checks.skip("epsilon", "no plan to recompute it with")
        elif charged is None or receipt.round != number:
            checks.skip("epsilon", "not recomputed")
        elif number > self.agreed.rounds:
            checks.hold("epsilon", f"the plan covers {self.agreed.rounds} rounds", "")
        elif charged > MOST_ATTEMPTS * number:
            checks.hold("epsilon", f"{charged} attempts at {number} rounds", "")
        else:
            done = "recomputed from the plan" if self.agreed.plan else "no plan, and no statement"
            checks.hold("epsilon", self.agreed.misstated(receipt.statements, charged), done)

    def _full(self, checks: Verdict, receipt: Receipt, digest: bytes, stem: str) -> None:
        if self.auditor is None:
            return
        own = self.auditor.public_key().public_bytes_raw().hex()
        auditors = self.agreed.manifest.auditors
        if own not in auditors:
            checks.hold("full_receipt", "the manifest names no such auditor", "")
            return
        try:
            sealed = load(self.folder / f"{stem}.full-{auditors.index(own)}.bin")
            entries = receipts.open_full(sealed, self.auditor, digest)
            receipts.check_full(entries, receipt, [bytes.fromhex(k) for k in self.agreed.manifest.roster])
        except (Malformed, Refused) as error:
            checks.hold("full_receipt", str(error), "")
        else:
            checks.hold("full_receipt", None, "its entries are those that the public one commits to")


def _model(round: Round) -> str:
    return round.receipt.model if round.receipt else ""
