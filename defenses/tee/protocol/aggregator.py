"""The attested aggregator: it runs inside, holds the only keys, and reads the updates.

It trusts nothing that its host says. It checks the manifest that all clients have signed, draws the cohort itself,
gets a report for fresh keys and the clients' nonces in every attempt, opens what was sealed for it, runs the rest of an
update's way (aggregation, release, server optimiser), and signs a receipt.
"""

import copy
import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.sampling import cohort
from privbench.benchmarks.federation.server import Pipeline, RoundContext, ServerState
from privbench.benchmarks.federation.spans import span
from privbench.defenses.accounting.guarantee import redrawn
from privbench.defenses.aggregation import Diverged
from privbench.defenses.tee.platforms.platform import Platform
from privbench.defenses.tee.protocol import binding, downlink, outgoing, parts, proof, receipts, resume, sealing, state
from privbench.defenses.tee.protocol.agreed import contradiction
from privbench.defenses.tee.protocol.attempt import Attempt, entry
from privbench.defenses.tee.protocol.intake import Intake
from privbench.defenses.tee.protocol.manifest import Manifest, Refused, check_countersignatures, public
from privbench.defenses.tee.protocol.opening import FIRST, Opening
from privbench.defenses.tee.protocol.proof import Verifier
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
        Refused: if the manifest isn't enrolled and countersigned, isn't that of this program or of this model, or
            names a key that nothing can be sealed to.
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
        for who, given in (("recipient", manifest.recipients), ("auditor", manifest.auditors)):
            # Found out now: nothing could be released to them after the first round's training.
            if odd := [n for n, key in enumerate(given) if not downlink.can_seal(key)]:
                raise Refused("malformed_manifest", f"{who} {odd[0]}'s key is no X25519 key that can be sealed to")
        if self.plan and (fault := contradiction(manifest, self.plan)):
            raise Refused("contradicted_plan", fault)
        local = parts.component("local", manifest.training["local"]) if manifest.training else None
        clip = parts.clip(manifest, local) if local else None
        self.intake = Intake(manifest, self.digest, self.layout, self.facts.records, clip)
        self.state = ServerState(round=0, model=model)
        self.start = bytes.fromhex(manifest.model)
        self.previous, self.last_attempt = FIRST, 0
        self.attempt: Attempt | None = None
        self._sealed: bytes | None = None
        self._unlocking: Attempt | None = None

    def resume(self, stored: dict[str, Any]) -> None:
        """Go on from a state whose digest stands in the last receipt.

        Raises:
            Refused: if it does not, or if that receipt isn't of this run's attested aggregator.
        """
        receipt = resume.check(stored, self.manifest)
        self.start, self.previous = bytes.fromhex(receipt.model), receipts.digest(stored["receipt"])
        if self.manifest.recipients:
            self.state, self._sealed = ServerState(round=receipt.round, model=torch.empty(0)), stored["state"]
        else:
            self.state = ServerState(**state.decode(stored["state"]))

    @property
    def locked(self) -> bool:
        """Whether it has its state sealed, and waits for a client, who was sent that state's key."""
        return self._sealed is not None

    def ask_key(self, client: int, nonce: bytes) -> dict[str, Any]:
        """Show evidence to one client, for the key of the state that it resumed: an opening with attempt 0.

        Raises:
            Refused: ``out_of_order`` or ``unknown_client``.
        """
        if not self.locked:
            raise Refused("out_of_order", "the state is not sealed")
        self.manifest.key(client)
        self._unlocking, answer = self._opened(self.state.round + 1, 0, {client: nonce}, ())
        return answer

    def unlock(self, message: bytes) -> None:
        """Take the key up, sealed by the client that was asked.

        Raises:
            Refused: ``out_of_order``, ``unopenable`` for another key, or what is wrong with the message.
        """
        asked, self._unlocking = self._unlocking, None
        if asked is None or self._sealed is None:
            raise Refused("out_of_order", "no key was asked for")
        key = self.intake.payload(message, asked)
        self.state = ServerState(**state.decode(downlink.open_state(self._sealed, key, self.digest, self.state.round)))
        self._sealed = None

    def open(self, round: int, attempt: int, joins: dict[int, bytes]) -> dict[str, Any]:
        """Begin an attempt at the next round: new KEM key, new evidence over the clients' nonces.

        Args:
            joins: nonces of the clients that joined, by number.

        Raises:
            Refused: ``out_of_order``, ``not_invited``, ``unknown_client`` or ``least_cohort``.
        """
        if self.locked or round != self.state.round + 1 or attempt <= self.last_attempt:
            raise Refused("out_of_order", f"round {round} attempt {attempt} after round {self.state.round}")
        invited = self._drawn(round, attempt)
        if strangers := sorted(set(joins) - set(invited)):
            raise Refused("not_invited", f"clients {strangers} are not of round {round}'s cohort")
        self._enough(len(joins), round)
        with span("attestation"):
            self.attempt, answer = self._opened(round, attempt, joins, invited)
        self.last_attempt = attempt
        return answer

    def _opened(
        self, round: int, attempt: int, joins: dict[int, bytes], invited: tuple[int, ...]
    ) -> tuple[Attempt, dict[str, Any]]:
        """An attempt with a new KEM key and evidence for who joined, and what its host is told."""
        if odd := sorted(c for c, nonce in joins.items() if not binding.is_nonce(nonce)):
            raise Refused("malformed_nonce", f"clients {odd}: {binding.NONCE} bytes are right")
        started = time.perf_counter()
        kem_key, roster = X25519PrivateKey.generate(), range(len(self.manifest.roster))
        leaves = [binding.leaf(self.manifest.key(c), joins.get(c, binding.ABSENT)) for c in roster]
        tree = binding.levels(leaves)
        keys = kem_key.public_key().public_bytes_raw(), public(self.signing_key)
        asked = binding.report_data(binding.AGGREGATOR, self.digest, *keys, tree[-1][0])
        evidence = self.platform.evidence(asked)
        opening = Opening(self.digest, round, attempt, self.start, self.previous, *keys, tree[-1][0], evidence.report)
        opening = opening.signed(self.signing_key)
        root = proof.own_root(evidence) if self.manifest.platform == "software" else None
        made = Attempt(opening, kem_key, frozenset(joins), invited, Verifier(self.manifest, root))
        made.costs["evidence_seconds"] = time.perf_counter() - started
        return made, {
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
        # On a copy, so that an attempt which fails late has not happened. Models are replaced, never changed in place.
        work = copy.deepcopy(dataclasses.replace(self.state, model=torch.empty(0)))
        work.model = self.state.model
        updates = self.intake.updates(messages, attempt, self.state.channel.get("commitments", {}))
        released = self.pipeline.run(updates, work, context)
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
            tried = (self._drawn(context.round, n) for n in range(1, attempt.opening.attempt + 1))
            work.ledger += [self.plan.charge(context.round, invited) for invited in tried]
        with span("receipts"):
            return self._finish(attempt, work, released.extras)

    def _finish(self, attempt: Attempt, work: ServerState, extras: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        started = time.perf_counter()
        for client in sorted(attempt.joined - {e["client"] for e in attempt.entries}):
            attempt.entries.append(entry(client, b"", "silent", "joined and sent nothing"))
        model, out = outgoing.release(self.manifest, work, extras, attempt)
        receipt = outgoing.receipt(self.manifest, self.plan, work, attempt, model, out["state"])
        envelope = receipts.sign(receipt, self.signing_key)
        full = [
            receipts.seal_full(attempt.entries, bytes.fromhex(key), receipts.digest(envelope))
            for key in self.manifest.auditors
        ]
        self.state, self.start, self.previous, self.last_attempt = work, model, receipts.digest(envelope), 0
        attempt.costs["receipt_seconds"] = time.perf_counter() - started
        return {
            **out,
            "receipt": envelope,
            "full": full,
            "verdicts": verdicts(attempt.entries),
            "attempt": attempt.opening.attempt,
            "costs": dict(attempt.costs),
        }

    def _drawn(self, round: int, attempt: int) -> tuple[int, ...]:
        """The cohort of an attempt at a round."""
        generator = stream(self.manifest.seed, "cohort", round, attempt=redrawn(self.plan, attempt))
        return cohort(self.facts.clients, self.facts.participation, self.facts.sampling, generator)

    def _enough(self, clients: int, round: int) -> None:
        least = self.manifest.least_cohort
        if clients < least:
            raise Refused("least_cohort", f"{clients} clients in round {round}, at least {least}: nothing is released")

    def _context(self, attempt: Attempt) -> RoundContext:
        return RoundContext(
            seed=self.manifest.seed,
            round=attempt.opening.round,
            invited=attempt.invited,
            expected=self.facts.expected,
            weighting=self.manifest.weighting,
            layout=self.layout,
            kind=self.manifest.share,
            learning_rate=self.manifest.learning_rate,
            plan=self.plan,
            watched=frozenset(),
        )


def verdicts(entries: list[dict[str, Any]]) -> list[list[Any]]:
    """Client, verdict and reason of each message."""
    return [[e["client"], e["verdict"], e["reason"]] for e in entries]
