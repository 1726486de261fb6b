"""One attempt at a round, as its aggregator holds it, and what it records of each message."""

import secrets
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from privbench.defenses.tee.protocol.opening import Opening
from privbench.defenses.tee.protocol.proof import Verifier


@dataclass
class Attempt:
    """An open attempt at a round.

    Args:
        opening: what the clients were told.
        kem_key: opens their messages; gone with the attempt.
        joined: who joined.
        invited: the whole cohort that was drawn.
        verifier: of what attested clients prove.
        entries: a record of each message, for the receipt.
        commitments: to the accepted clients' records, by number.
        costs: seconds by what they were spent on.
        waited: seconds that the aggregator waited for messages.
    """

    opening: Opening
    kem_key: X25519PrivateKey
    joined: frozenset[int]
    invited: tuple[int, ...]
    verifier: Verifier
    entries: list[dict[str, Any]] = field(default_factory=list)
    accepted: set[int] = field(default_factory=set)
    commitments: dict[str, bytes] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    waited: float = 0.0


def entry(client: int, digest: bytes, verdict: str, reason: str, size: int = 0) -> dict[str, Any]:
    """What a receipt says of one message; ``client`` is -1 for nobody's."""
    return {
        "client": client,
        "salt": secrets.token_bytes(32),
        "sealed_sha256": digest,
        "bytes": size,
        "verdict": verdict,
        "reason": reason,
    }
