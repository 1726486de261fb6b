"""The attested aggregator: it runs inside, holds the only keys, and reads the updates.

It trusts nothing that its host says. It checks the manifest that all clients have signed, draws the cohort itself,
gets a report for fresh keys and the clients' nonces in every attempt, opens what was sealed for it, runs the rest of an
update's way (aggregation, release, server optimiser), and signs a receipt.
"""

import copy
import dataclasses
import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.sampling import cohort
from privbench.benchmarks.federation.server import Pipeline, RoundContext, ServerState
from privbench.benchmarks.federation.update import Update
from privbench.defenses.aggregation import Diverged
from privbench.defenses.tee.platforms.platform import Platform
from privbench.defenses.tee.protocol import binding, parts, proof, receipts, resume, sealing, state
from privbench.defenses.tee.protocol.agreed import contradiction
from privbench.defenses.tee.protocol.attempt import Attempt, entry
from privbench.defenses.tee.protocol.manifest import Manifest, Refused, check_countersignatures, public
from privbench.defenses.tee.protocol.opening import FIRST, Opening
from privbench.defenses.tee.protocol.proof import Verifier
from privbench.defenses.tee.protocol.receipts import Receipt
from privbench.defenses.tee.report import parse


class Unreleased(RuntimeError):
    """A round that ended without a release.

    Args:
        cause: why.
        entries: what became of each message until then.
    """

    def __init__(self, cause: Refused | Diverged, entries: list[dict[str, Any]]):
        super().__init__(str(cause))
        self.cause, self.entries = cause, entries


class Aggregator:
    """One aggregator for one run.

    Args:
        platform: gives evidence of this program.
        manifest: countersigned by every client.
        model: the initial model, ``(d,)``.

    Raises:
        Refused: if the manifest isn't enrolled and countersigned, or isn't that of this program or of this model.
        ConfigError: if its components can't be built.
    """

    def __init__(self, platform: Platform, manifest: Manifest, signatures: list[bytes], model: torch.Tensor):
        manifest.check_enrolment()
        check_countersignatures(manifest, signatures)
        if sealing.model_digest(model).hex() != manifest.model:
            raise Refused("wrong_model", "the initial model is not the manifest's")
        self.platform, self.manifest, self.digest = platform, manifest, manifest.digest
        self.signing_key = Ed25519PrivateKey.generate()
        self.layout, self.facts, self.plan = parts.layout(manifest), parts.facts(manifest), parts.plan(manifest)
        kinds = ("aggregation", "release", "server")
        self.pipeline = Pipeline(*(parts.component(kind, getattr(manifest, kind)) for kind in kinds))
        if self.plan and (fault := contradiction(manifest, self.plan)):
            raise Refused("contradicted_plan", fault)
        local = parts.component("local", manifest.training["local"]) if manifest.training else None
        self.clip = parts.clip(manifest, local) if local else None
        self.state = ServerState(round=0, model=model)
        self.previous, self.last_attempt = FIRST, 0
        self.attempt: Attempt | None = None

    def resume(self, stored: dict[str, Any]) -> None:
        """Go on from a state whose digest stands in the last receipt.

        Raises:
            Refused: if it does not, or if that receipt isn't of this run's attested aggregator.
        """
        resume.check(stored, self.manifest)
        self.state = ServerState(**state.decode(stored["state"]))
        self.previous = receipts.digest(stored["receipt"])

    def open(self, round: int, attempt: int, joins: dict[int, bytes]) -> dict[str, Any]:
        """Begin an attempt at the next round: new KEM key, new evidence over the clients' nonces.

        Args:
            joins: nonces of the clients that joined, by number.

        Raises:
            Refused: ``out_of_order``, ``not_invited``, ``unknown_client`` or ``least_cohort``.
        """
        if round != self.state.round + 1 or (attempt <= self.last_attempt):
            raise Refused("out_of_order", f"round {round} attempt {attempt} after round {self.state.round}")
        drawn = stream(self.manifest.seed, "cohort", round)
        invited = cohort(self.facts.clients, self.facts.participation, self.facts.sampling, drawn)
        if strangers := sorted(set(joins) - set(invited)):
            raise Refused("not_invited", f"clients {strangers} are not of round {round}'s cohort")
        self._enough(len(joins), round)
        started = time.perf_counter()
        kem_key, roster = X25519PrivateKey.generate(), range(len(self.manifest.roster))
        leaves = [binding.leaf(self.manifest.key(c), joins.get(c, binding.ABSENT)) for c in roster]
        tree = binding.levels(leaves)
        keys = kem_key.public_key().public_bytes_raw(), public(self.signing_key)
        asked = binding.report_data(binding.AGGREGATOR, self.digest, *keys, tree[-1][0])
        evidence = self.platform.evidence(asked)
        start = sealing.model_digest(self.state.model)
        opening = Opening(self.digest, round, attempt, start, self.previous, *keys, tree[-1][0], evidence.report)
        opening = opening.signed(self.signing_key)
        root = proof.own_root(evidence) if self.manifest.platform == "software" else None
        self.attempt = Attempt(opening, kem_key, frozenset(joins), invited, Verifier(self.manifest, root))
        self.last_attempt = attempt
        self.attempt.costs["evidence_seconds"] = time.perf_counter() - started
        return {
            "opening": dict(opening.__dict__),
            "paths": {str(c): binding.path(tree, c) for c in joins},
            "certificates": list(evidence.certificates),
            "measurement": parse(evidence.report).measurement,
        }

    def close(self, messages: Iterator[bytes]) -> dict[str, Any]:
        """Consume the attempt's messages, aggregate, release, step, and sign.

        Raises:
            Refused: no round is open.
            Unreleased: below the least cohort, or the updates or the model left the finite numbers.
        """
        attempt = self.attempt
        if attempt is None:
            raise Refused("out_of_order", "no round is open")
        self.attempt = None  # its KEM key goes with it
        try:
            return self._release(messages, attempt)
        except (Refused, Diverged) as error:
            raise Unreleased(error, attempt.entries) from error

    def _release(self, messages: Iterator[bytes], attempt: Attempt) -> dict[str, Any]:
        context = self._context(attempt)
        started = time.perf_counter()
        before = sealing.model_digest(self.state.model)
        # On a copy, so that an attempt which fails late has not happened. Models are replaced, never changed in place.
        work = copy.deepcopy(dataclasses.replace(self.state, model=torch.empty(0)))
        work.model = self.state.model
        released = self.pipeline.run(self._updates(messages, attempt), work, context)
        self._enough(len(attempt.accepted), context.round)
        if not bool(torch.isfinite(released.model).all()):
            raise Diverged(f"the model holds NaN or infinity after round {context.round}")
        elapsed = time.perf_counter() - started
        attempt.costs["aggregation_seconds"] = elapsed - attempt.costs["opening_seconds"] - attempt.waited
        work.model, work.round = released.model, context.round
        if attempt.commitments:
            work.channel["commitments"] = {**work.channel.get("commitments", {}), **attempt.commitments}
        if self.plan:
            # An attempt before this one may have released what was then lost, and its host may have read it.
            work.ledger += [self.plan.charge(context.round, context.invited) for _ in range(attempt.opening.attempt)]
        return self._finish(attempt, work, before, released.extras)

    def _finish(
        self, attempt: Attempt, work: ServerState, before: bytes, extras: Mapping[str, torch.Tensor]
    ) -> dict[str, Any]:
        started = time.perf_counter()
        for client in sorted(attempt.joined - {e["client"] for e in attempt.entries}):
            attempt.entries.append(entry(client, b"", "silent", "joined and sent nothing"))
        kept = state.encode(_kept(work))
        receipt = self._receipt(attempt, work, before, kept)
        envelope = receipts.sign(receipt, self.signing_key)
        full = [
            receipts.seal_full(attempt.entries, bytes.fromhex(key), receipts.digest(envelope))
            for key in self.manifest.auditors
        ]
        self.state, self.previous, self.last_attempt = work, receipts.digest(envelope), 0
        attempt.costs["receipt_seconds"] = time.perf_counter() - started
        return {
            "model": sealing.floats(work.model),
            "extras": state.encode(extras),
            "state": kept,
            "receipt": envelope,
            "full": full,
            "verdicts": verdicts(attempt.entries),
            "attempt": attempt.opening.attempt,
            "costs": dict(attempt.costs),
        }

    def _updates(self, messages: Iterator[bytes], attempt: Attempt) -> Iterator[Update]:
        since = time.perf_counter()
        for message in messages:
            started = time.perf_counter()
            attempt.waited += started - since
            digest, client = hashlib.sha256(message).digest(), -1
            try:
                place, sealed, signature = sealing.read(message)
                digest = hashlib.sha256(sealed).digest()
                self._authenticate(place, sealed, signature)
                client = place.client  # until here anybody could have named it
                self._admit(place, attempt)
                update = self._update(sealing.open_(sealed, place, attempt.kem_key), client, attempt)
            except Refused as refusal:
                attempt.entries.append(entry(client, digest, refusal.name, refusal.reason, len(message)))
                continue
            finally:
                since = time.perf_counter()
                attempt.costs["opening_seconds"] += since - started
            attempt.accepted.add(client)
            attempt.entries.append(entry(client, digest, "accepted", "", len(message)))
            yield update
            since = time.perf_counter()
        attempt.waited += time.perf_counter() - since

    def _update(self, payload: bytes, client: int, attempt: Attempt) -> Update:
        """The update in a payload, with the client's proof where clients are attested."""
        attesting = bool(self.manifest.client_measurements)
        encoded, fields = sealing.split(payload) if attesting else (payload, None)
        update = sealing.decode(encoded, client, self.layout)
        self._sound(update, client)
        if attesting:
            shown, known = proof.read(fields), self.state.channel.get("commitments", {}).get(str(client))
            attempt.verifier.check(shown, client, attempt.opening, encoded, self.clip, known)
            attempt.commitments[str(client)] = shown.statement.commitment
        return update

    def _authenticate(self, place: sealing.Place, sealed: bytes, signature: bytes) -> None:
        if place.manifest != self.digest:
            raise Refused("foreign", "a message of another run")
        sealing.check_signature(place, sealed, signature, self.manifest.key(place.client))

    def _admit(self, place: sealing.Place, attempt: Attempt) -> None:
        """Refuse, by name, whatever isn't this attempt's message of one of its clients."""
        opening = attempt.opening
        if place.client not in attempt.joined:
            raise Refused("not_invited", f"client {place.client} has not joined this attempt")
        here = f"round {opening.round} attempt {opening.attempt} is open"
        if (place.round, place.attempt) < (opening.round, opening.attempt):
            raise Refused("stale", f"a message of round {place.round} attempt {place.attempt}, {here}")
        if (place.round, place.attempt) != (opening.round, opening.attempt):
            raise Refused("foreign", f"a message of round {place.round} attempt {place.attempt}, {here}")
        if place.client in attempt.accepted:
            raise Refused("replayed", f"client {place.client} has sent its update already")
        if place.evidence != opening.evidence:
            raise Refused("stale_evidence", f"client {place.client} relied on other evidence")
        if (place.start_model, place.previous) != (opening.start_model, opening.previous):
            raise Refused("wrong_start", f"client {place.client} started from another model or receipt")

    def _sound(self, update: Update, client: int) -> None:
        if update.extras:
            raise Refused("malformed_update", f"client {client} sent tensors that nobody agreed on: {[*update.extras]}")
        if update.kind != self.manifest.share:
            raise Refused("malformed_update", f"client {client} sent a {update.kind}, not a {self.manifest.share}")
        enrolled = self.facts.records[client]
        if update.records != enrolled:
            # Weights are made of it: a client can't grow between enrolment and a round.
            raise Refused("inflated_records", f"client {client} claims {update.records} records, enrolled {enrolled}")

    def _enough(self, clients: int, round: int) -> None:
        least = self.manifest.least_cohort
        if clients < least:
            raise Refused("least_cohort", f"{clients} clients in round {round}, at least {least}: nothing is released")

    def _context(self, attempt: Attempt) -> RoundContext:
        return RoundContext(
            seed=self.manifest.seed,
            round=attempt.opening.round,
            invited=attempt.invited,
            expected=self.facts.participation * self.facts.clients,
            weighting=self.manifest.weighting,
            layout=self.layout,
            kind=self.manifest.share,
            learning_rate=self.manifest.learning_rate,
            plan=self.plan,
            watched=frozenset(),
        )

    def _receipt(self, attempt: Attempt, work: ServerState, before: bytes, kept: bytes) -> Receipt:
        opening = attempt.opening
        refused = Counter(e["verdict"] for e in attempt.entries if e["verdict"] != "accepted")
        keys = [self.manifest.key(e["client"]) if e["client"] >= 0 else b"" for e in attempt.entries]
        inputs = (
            receipts.commitment(e["salt"], key, e["sealed_sha256"])
            for e, key in zip(attempt.entries, keys, strict=True)
        )
        return Receipt(
            run=self.manifest.run,
            manifest=self.digest.hex(),
            round=opening.round,
            attempt=opening.attempt,
            previous=opening.previous.hex(),
            evidence={
                "signed_sha256": opening.evidence.hex(),
                "kem_key": opening.kem_key.hex(),
                "signing_key": opening.signing_key.hex(),
                "nonce_root": opening.root.hex(),
            },
            start_model=before.hex(),
            model=sealing.model_digest(work.model).hex(),
            state=hashlib.sha256(kept).hexdigest(),
            invited=len(attempt.invited),
            accepted=len(attempt.accepted),
            refused=dict(refused),
            inputs=sorted(c.hex() for c in inputs),
            **receipts.parameters(self.manifest, self.plan),
            statements=self.plan.statements(work.ledger) if self.plan else [],
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def verdicts(entries: list[dict[str, Any]]) -> list[list[Any]]:
    """Client, verdict and reason of each message."""
    return [[e["client"], e["verdict"], e["reason"]] for e in entries]


def _kept(work: ServerState) -> dict[str, Any]:
    """What of the state travels through the host: it follows from what was released, or is a salted commitment."""
    names = ("round", "model", "optimizer", "rule", "release", "channel", "ledger")
    return {name: getattr(work, name) for name in names}
