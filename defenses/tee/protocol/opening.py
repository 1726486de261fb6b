"""How a round begins: the aggregator's attested statement, and what each client checks before it seals anything."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privbench.defenses.tee import certificates
from privbench.defenses.tee.policy import Floors, Policy
from privbench.defenses.tee.protocol import binding
from privbench.defenses.tee.protocol.manifest import Manifest, Refused, check
from privbench.defenses.tee.report import SIGNED
from privbench.defenses.tee.verify import verify

_DOMAIN = b"privbench opening 1"
FIRST = bytes(32)
"""Stands for the receipt before the first."""


@dataclass(frozen=True)
class Opening:
    """One attempt at one round, as the aggregator opens it for all clients alike.

    Args:
        manifest: digest of the run manifest.
        round: from 1.
        attempt: from 1; 0 in one that asks a client for the key of the last release's state.
        start_model: SHA-256 of the model that everybody starts from, salted where it was released sealed.
        previous: digest of the last receipt, :data:`FIRST` before there is one.
        kem_key, signing_key: of this round, and of this aggregator; public, 32 bytes each.
        root: of the tree of nonces.
        report: 1184 bytes; REPORT_DATA binds manifest, keys and root.
        signature: by the signing key, over all the others.
    """

    manifest: bytes
    round: int
    attempt: int
    start_model: bytes
    previous: bytes
    kem_key: bytes
    signing_key: bytes
    root: bytes
    report: bytes
    signature: bytes = b""

    @property
    def evidence(self) -> bytes:
        """SHA-256 of the report's signed bytes: its identity (its own signature is malleable)."""
        return hashlib.sha256(self.report[:SIGNED]).digest()

    def message(self) -> bytes:
        """What is signed."""
        numbers = (n.to_bytes(8, "big") for n in (self.round, self.attempt))
        return binding.transcript(
            _DOMAIN, self.manifest, *numbers, self.start_model, self.previous, self.kem_key, self.root, self.evidence
        )

    def signed(self, key: Ed25519PrivateKey) -> "Opening":
        return Opening(**{**self.__dict__, "signature": key.sign(self.message())})


@dataclass(frozen=True)
class Head:
    """The newest receipt that a client knows of.

    Args:
        round: 0 before the first.
        digest: of the receipt.
    """

    round: int = 0
    digest: bytes = FIRST


@dataclass
class Relying:
    """What a client relies on: the manifest that it signed, the platform's certificates, and its own demands.

    Args:
        manifest: countersigned by this client.
        certificates: leaf and chain, DER, however they came.
        root: of a software platform; ``None`` trusts AMD's pinned keys.
        tcb_floor, allow, host_data: as in :class:`~privbench.defenses.tee.policy.Policy`; ``host_data`` False waives
            the demand that HOST_DATA is the manifest's digest, for hosts that can't set it.
    """

    manifest: Manifest
    certificates: tuple[bytes, ...]
    root: bytes | None
    tcb_floor: str | Floors = "advisory"
    allow: frozenset[str] = frozenset()
    host_data: bool = True

    def __post_init__(self) -> None:
        self._digest = self.manifest.digest
        self._measurements = tuple(bytes.fromhex(m) for m in self.manifest.measurements)
        self._root = certificates.load(self.root)[0] if self.root else None
        self._size = len(self.manifest.roster)

    def check(
        self,
        opening: Opening,
        client: int,
        nonce: bytes,
        path: list[bytes],
        received: bytes,
        head: Head,
        age: float,
        for_key: bool = False,
    ) -> None:
        """Refuse an opening before anything is sent to it.

        Args:
            client: this client's number in the roster.
            nonce: that it sent for this attempt.
            path: siblings of its leaf in the tree of nonces.
            received: SHA-256 of the model that it received, salted where it came sealed.
            head: the newest receipt that it knows of.
            age: seconds from making its nonce to receiving the opening.
            for_key: it is asked for a state's key, not for an update.

        Raises:
            Refused: ``foreign``, ``wrong_purpose``, ``stale_evidence``, ``nonce_missing``, ``wrong_measurement``,
                ``evidence``, ``unsigned_opening``, ``rollback``, ``fork`` or ``wrong_model``.
        """
        if opening.manifest != self._digest:
            raise Refused("foreign", "the opening is of another run's manifest")
        if (opening.attempt == 0) != for_key:
            asked, wanted = ("an update", "a key") if for_key else ("a key", "an update")
            raise Refused("wrong_purpose", f"the opening asks for {asked}, its host for {wanted}")
        if not 0 <= age <= self.manifest.greatest_age:
            most = self.manifest.greatest_age
            raise Refused("stale_evidence", f"{age:.1f} s since the nonce, 0 to {most:g} are right")
        at = binding.leaf(self.manifest.key(client), nonce)
        if binding.root(client, self._size, at, path) != opening.root:
            raise Refused("nonce_missing", f"the evidence was not made for client {client}'s nonce")
        self._attested(opening)
        check(opening.signing_key, opening.signature, opening.message(), "unsigned_opening", "the aggregator")
        if opening.round <= head.round:
            raise Refused("rollback", f"round {opening.round} is opened, round {head.round} has a receipt")
        if opening.round == head.round + 1 and opening.previous != head.digest:
            raise Refused("fork", f"another receipt of round {head.round} than the one known")
        if opening.start_model != received:
            raise Refused("wrong_model", "the model received is not the one that the aggregator attests")

    def _attested(self, opening: Opening) -> None:
        data = binding.report_data(binding.AGGREGATOR, self._digest, opening.kem_key, opening.signing_key, opening.root)
        software = {"software-tee"} if self.manifest.platform == "software" else set()
        policy = Policy(
            measurements=self._measurements,
            report_data=data,
            vmpl=0,
            allow=self.allow | software,
            tcb_floor=self.tcb_floor,
            host_data=self._digest if self.host_data else None,
        )
        verdict = verify(opening.report, self.certificates, policy, datetime.now(UTC), self._root)
        if verdict.accepted:
            return
        faults = {c.name: c.reason for c in verdict.checks if c.status == "fail"}
        name = "wrong_measurement" if set(faults) == {"measurement"} else "evidence"
        raise Refused(name, "; ".join(f"{n}: {reason}" for n, reason in faults.items()))


def opened(fields: dict[str, Any]) -> Opening:
    """An opening from a message's fields.

    Raises:
        Refused: ``malformed``.
    """
    kinds = {name: int if name in ("round", "attempt") else bytes for name in Opening.__dataclass_fields__}
    if set(fields) != set(kinds) or any(type(fields[n]) is not k for n, k in kinds.items()):
        raise Refused("malformed", "fields of the opening")
    return Opening(**fields)
