"""What leaves an aggregator when a round ends: model and state, in the clear or sealed, and what its receipt says."""

import hashlib
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch

from privbench.benchmarks.federation.server import ServerState
from privbench.benchmarks.federation.spans import span
from privbench.defenses.tee.protocol import downlink, receipts, sealing, state
from privbench.defenses.tee.protocol.attempt import Attempt
from privbench.defenses.tee.protocol.manifest import Manifest
from privbench.defenses.tee.protocol.receipts import Receipt
from privbench.defenses.tee.wire import pack

if TYPE_CHECKING:
    from privbench.defenses.accounting.plan import Plan


def release(
    manifest: Manifest, work: ServerState, extras: Mapping[str, torch.Tensor], attempt: Attempt
) -> tuple[bytes, dict[str, Any]]:
    """The new model's digest, and model and state for the host: in the clear, or sealed for the recipients.

    Args:
        work: the state after the round.
        extras: what was released beside the model.
        attempt: takes down the seconds that sealing took.
    """
    floats, kept = sealing.floats(work.model), state.encode(_kept(work))
    content = {"model": floats, "extras": state.encode(extras)}
    if not manifest.recipients:
        return downlink.digest(floats, None), {**content, "state": kept}
    started = time.perf_counter()
    key, recipients = downlink.new_key(), [bytes.fromhex(k) for k in manifest.recipients]
    with span("encryption"):
        both = (key, pack(content)), (downlink.new_key(), kept)
        sealed = downlink.seal(*both, manifest.digest, work.round, recipients, len(manifest.roster))
    attempt.costs["downlink_seconds"] = time.perf_counter() - started
    out = {name: list(v) if isinstance(v, tuple) else v for name, v in sealed.__dict__.items()}
    return downlink.digest(floats, downlink.salt(key)), out


def receipt(
    manifest: Manifest, plan: "Plan | None", work: ServerState, attempt: Attempt, model: bytes, kept: bytes
) -> Receipt:
    """The round's receipt, to be signed.

    Args:
        plan: the manifest's, bound.
        work: the state after the round.
        model: the released one's digest.
        kept: the state, as its host keeps it.
    """
    opening = attempt.opening
    refused = Counter(e["verdict"] for e in attempt.entries if e["verdict"] != "accepted")
    keys = [manifest.key(e["client"]) if e["client"] >= 0 else b"" for e in attempt.entries]
    inputs = (
        receipts.commitment(e["salt"], key, e["sealed_sha256"]) for e, key in zip(attempt.entries, keys, strict=True)
    )
    return Receipt(
        run=manifest.run,
        manifest=manifest.digest.hex(),
        round=opening.round,
        attempt=opening.attempt,
        previous=opening.previous.hex(),
        evidence={
            "signed_sha256": opening.evidence.hex(),
            "kem_key": opening.kem_key.hex(),
            "signing_key": opening.signing_key.hex(),
            "nonce_root": opening.root.hex(),
        },
        start_model=opening.start_model.hex(),
        model=model.hex(),
        state=hashlib.sha256(kept).hexdigest(),
        invited=len(attempt.invited),
        accepted=len(attempt.accepted),
        refused=dict(refused),
        inputs=sorted(c.hex() for c in inputs),
        **receipts.parameters(manifest, plan),
        statements=plan.statements(work.ledger) if plan else [],
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _kept(work: ServerState) -> dict[str, Any]:
    """What of the state travels through the host: it follows from what was released, or is a salted commitment."""
    names = ("round", "model", "optimizer", "rule", "release", "channel", "ledger")
    return {name: getattr(work, name) for name in names}
