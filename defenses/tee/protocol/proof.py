"""What an attested client proves of its update, and how the aggregator verifies it.

REPORT_DATA of the client's guest is a hash of a statement: the round and attempt, the aggregator's opening (which binds
the starting model and is fresh in every attempt), a salted commitment to the records, their number, the training
settings, the update and the clip norm. The launch measurement says which code made it. Nothing else of the data is in
it: that is selective disclosure, and it rests on the hardware, not on a zero-knowledge proof.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import rfc8785
from torch import Tensor

from privbench.defenses.tee import certificates
from privbench.defenses.tee.certificates import Certificate
from privbench.defenses.tee.platforms.platform import Evidence
from privbench.defenses.tee.policy import Policy
from privbench.defenses.tee.protocol import binding
from privbench.defenses.tee.protocol.binding import transcript
from privbench.defenses.tee.protocol.manifest import Manifest, Refused
from privbench.defenses.tee.protocol.opening import Opening
from privbench.defenses.tee.report import Malformed
from privbench.defenses.tee.verify import verify

CLIENT = b"client"
"""The role in REPORT_DATA: an aggregator's evidence is no client's."""

_DOMAIN = b"privbench client report data 1"
_RECORD = b"privbench record 1"
_SALT = b"privbench record salt 1"


@dataclass(frozen=True)
class Statement:
    """What a client's guest says of one update. Digests are SHA-256.

    Args:
        manifest: digest of the run manifest.
        round, attempt: from 1.
        client_key: the client's public key in the roster.
        opening: digest of the opening that the guest checked.
        commitment: to the records that it trained on.
        records: their number.
        training: digest of the training settings.
        update: digest of the update's bytes.
        clip: norm to which the client clips; ``None`` where it doesn't.
    """

    manifest: bytes
    round: int
    attempt: int
    client_key: bytes
    opening: bytes
    commitment: bytes
    records: int
    training: bytes
    update: bytes
    clip: float | None

    def report_data(self) -> bytes:
        """The 64 bytes of REPORT_DATA."""
        numbers = (n.to_bytes(8, "big") for n in (self.round, self.attempt, self.records))
        clip = b"" if self.clip is None else repr(float(self.clip)).encode()
        parts = (self.client_key, self.opening, self.commitment, self.training, self.update, clip)
        return hashlib.sha512(transcript(_DOMAIN, CLIENT, self.manifest, *numbers, *parts)).digest()


@dataclass(frozen=True)
class Proof:
    """A statement, and the evidence for it.

    Args:
        statement: what is claimed.
        report: 1184 bytes.
        certificates: its leaf and chain, DER.
    """

    statement: Statement
    report: bytes
    certificates: tuple[bytes, ...]

    def fields(self) -> dict[str, Any]:
        """For a message; :func:`read` is the inverse."""
        return {**self.statement.__dict__, "report": self.report, "certificates": list(self.certificates)}


_KINDS: dict[str, Any] = {
    **dict.fromkeys(("manifest", "client_key", "opening", "commitment", "training", "update", "report"), bytes),
    **dict.fromkeys(("round", "attempt", "records"), int),
}


def read(fields: Any) -> Proof:
    """A proof from a message's fields; nothing is verified but their kinds.

    Raises:
        Refused: ``malformed_evidence``.
    """
    if not isinstance(fields, dict) or set(fields) != {*_KINDS, "clip", "certificates"}:
        raise Refused("malformed_evidence", "fields of the client's evidence")
    wrong = [name for name, kind in _KINDS.items() if type(fields[name]) is not kind]
    wrong += [n for n in ("round", "attempt", "records") if n not in wrong and not 0 <= fields[n] < 2**63]
    wrong += ["clip"] if fields["clip"] is not None and type(fields["clip"]) not in (int, float) else []
    chain = fields["certificates"]
    wrong += [] if isinstance(chain, list) and all(type(c) is bytes for c in chain) else ["certificates"]
    if wrong:
        raise Refused("malformed_evidence", f"the value of {', '.join(wrong)}")
    stated = {name: value for name, value in fields.items() if name not in ("report", "certificates")}
    return Proof(Statement(**stated), fields["report"], tuple(chain))


def commitment(x: Tensor, y: Tensor, salt: bytes) -> bytes:
    """A salted Merkle root over records ``(n, *shape)`` and labels ``(n,)``, 32 bytes.

    Each record has a salt of its own, derived from ``salt``, so that one can be opened without the others.
    """
    inputs, labels = x.contiguous().numpy(), y.contiguous().numpy()
    leaves = []
    for n in range(len(labels)):
        own = hashlib.sha256(transcript(_SALT, salt, n.to_bytes(8, "big"))).digest()
        leaves.append(hashlib.sha256(transcript(_RECORD, own, inputs[n].tobytes(), labels[n].tobytes())).digest())
    return binding.levels(leaves)[-1][0] if leaves else hashlib.sha256(transcript(_RECORD, salt)).digest()


def settings_bytes(training: Mapping[str, Any]) -> bytes:
    """Training settings as canonical JSON (RFC 8785), whose SHA-256 stands in the statement."""
    return rfc8785.dumps(dict(training))


def opening_digest(opening: Opening) -> bytes:
    """SHA-256 of what the aggregator signed in an opening: the nonce of the client's evidence."""
    return hashlib.sha256(opening.message()).digest()


def own_root(evidence: Evidence) -> Certificate | None:
    """The root of the platform that gave ``evidence``, of a software platform. It proves nothing, whoever names it."""
    found = [c for raw in evidence.certificates for c in certificates.load(raw)]
    return next((c for c in found if c.x509.issuer == c.x509.subject), None)


@dataclass(frozen=True)
class Verifier:
    """What the aggregator holds clients' proofs to.

    Args:
        manifest: names the clients' measurements and training settings.
        root: of a software platform; ``None`` trusts AMD's pinned keys.
    """

    manifest: Manifest
    root: Certificate | None

    def check(
        self, proof: Proof, client: int, opening: Opening, update: bytes, clip: float | None, known: bytes | None
    ) -> None:
        """Refuse, by name, whatever doesn't prove that the agreed code made this update in this attempt.

        Args:
            client: whose message it came in, authenticated.
            opening: of the attempt.
            update: the update's bytes.
            clip: norm to which clients clip by the plan.
            known: this client's commitment in earlier rounds; ``None`` if it has none.

        Raises:
            Refused: ``wrong_training_code``, ``evidence``, ``relayed_evidence``, ``wrong_training``,
                ``inflated_records`` or ``data_changed``.
        """
        said = proof.statement
        self._attested(proof, client)
        here = {
            "manifest": (said.manifest, opening.manifest),
            "round": (said.round, opening.round),
            "attempt": (said.attempt, opening.attempt),
            "client": (said.client_key, self.manifest.key(client)),
            "opening": (said.opening, opening_digest(opening)),
            "update": (said.update, hashlib.sha256(update).digest()),
        }
        if other := [name for name, (stated, wanted) in here.items() if stated != wanted]:
            raise Refused("relayed_evidence", f"client {client}'s evidence is of another {', '.join(other)}")
        agreed = hashlib.sha256(settings_bytes(self.manifest.training or {})).digest()
        if said.training != agreed or said.clip != clip:
            raise Refused("wrong_training", f"client {client} trained with other settings than were agreed")
        enrolled = self.manifest.facts["records"][client]
        if said.records != enrolled:
            raise Refused("inflated_records", f"client {client} trained on {said.records} records, enrolled {enrolled}")
        if known is not None and said.commitment != known:
            raise Refused("data_changed", f"client {client} trained on other records than in its first round")

    def _attested(self, proof: Proof, client: int) -> None:
        software = self.manifest.platform == "software"
        policy = Policy(
            measurements=tuple(bytes.fromhex(m) for m in self.manifest.client_measurements),
            report_data=proof.statement.report_data(),
            vmpl=0,
            allow=frozenset({"software-tee"} if software else ()),
            host_data=self.manifest.digest if software else None,
        )
        try:
            verdict = verify(proof.report, proof.certificates, policy, datetime.now(UTC), self.root)
        except Malformed as error:
            raise Refused("evidence", f"client {client}: {error}") from None
        if verdict.accepted:
            return
        faults = {c.name: c.reason for c in verdict.checks if c.status == "fail"}
        name = "wrong_training_code" if set(faults) == {"measurement"} else "evidence"
        raise Refused(name, f"client {client}: " + "; ".join(f"{n}: {reason}" for n, reason in faults.items()))
