"""After a restart: a state is taken up only if its digest stands in the last receipt of this run's aggregator."""

import hashlib
from datetime import UTC, datetime
from typing import Any

from privbench.defenses.tee import certificates
from privbench.defenses.tee.policy import Policy
from privbench.defenses.tee.protocol import binding, receipts
from privbench.defenses.tee.protocol.manifest import Manifest, Refused
from privbench.defenses.tee.protocol.receipts import Receipt
from privbench.defenses.tee.verify import verify


def check(stored: dict[str, Any], manifest: Manifest) -> Receipt:
    """The receipt that vouches for ``stored["state"]``.

    Args:
        stored: ``state``, ``receipt`` (its envelope), ``report``, ``certificates`` and, of software platforms that
            have ended, their ``roots``.
        manifest: of this run.

    Raises:
        Refused: ``wrong_state``, or what is wrong with the receipt.
    """
    receipt, _ = receipts.read(stored["receipt"])
    if receipt.manifest != manifest.digest.hex():
        raise Refused("foreign", "the last receipt is of another run's manifest")
    keys = (bytes.fromhex(receipt.evidence[n]) for n in ("kem_key", "signing_key", "nonce_root"))
    policy = Policy(
        measurements=tuple(bytes.fromhex(m) for m in manifest.measurements),
        report_data=binding.report_data(binding.AGGREGATOR, manifest.digest, *keys),
        vmpl=0,
        # The floor that holds now is the clients' to demand of the new evidence.
        tcb_floor="none",
        allow=frozenset({"software-tee"} if manifest.platform == "software" else ()),
    )
    # A software platform's root proves nothing, whoever names it. AMD's are pinned, and no host names another.
    named = stored["roots"] if manifest.platform == "software" else []
    roots = [certificates.load(der)[0] for der in named] or [None]
    verdicts = [verify(stored["report"], stored["certificates"], policy, datetime.now(UTC), r) for r in roots]
    verdict = next((v for v in verdicts if v.accepted), verdicts[-1])
    if not verdict.accepted:
        faults = "; ".join(f"{c.name}: {c.reason}" for c in verdict.checks if c.status == "fail")
        raise Refused("evidence", f"the last receipt's report: {faults}")
    receipts.verify_signature(stored["receipt"], bytes.fromhex(receipt.evidence["signing_key"]))
    if hashlib.sha256(stored["state"]).hexdigest() != receipt.state:
        raise Refused("wrong_state", "the state is not the one that the last receipt names")
    return receipt
