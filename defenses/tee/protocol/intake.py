"""What the aggregator makes of a message: it is opened and admitted, or refused by name."""

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from privbench.benchmarks.federation.spans import span
from privbench.benchmarks.federation.update import Layout, Update
from privbench.defenses.tee.protocol import proof, sealing
from privbench.defenses.tee.protocol.attempt import Attempt, entry
from privbench.defenses.tee.protocol.manifest import Manifest, Refused


@dataclass(frozen=True)
class Intake:
    """Where the messages of one run come in.

    Args:
        manifest: of the run.
        digest: its digest.
        layout: of the vectors.
        records: that each client enrolled with.
        clip: that attested clients prove; ``None`` where nobody clips.
    """

    manifest: Manifest
    digest: bytes
    layout: Layout
    records: tuple[int, ...]
    clip: float | None

    def updates(
        self, messages: Iterator[bytes], attempt: Attempt, commitments: Mapping[str, bytes]
    ) -> Iterator[Update]:
        """The updates of messages that are accepted; every message leaves an entry in ``attempt``.

        Args:
            commitments: to the records of attested clients, from rounds before, by number.
        """
        since = time.perf_counter()
        for message in _awaited(messages):
            started = time.perf_counter()
            attempt.waited += started - since
            digest, client = hashlib.sha256(message).digest(), -1
            try:
                with span("encryption"):
                    place, sealed, signature = sealing.read(message)
                    digest = hashlib.sha256(sealed).digest()
                    self._authenticate(place, sealed, signature)
                client = place.client  # until here anybody could have named it
                self._admit(place, attempt)
                with span("encryption", client):
                    payload = sealing.open_(sealed, place, attempt.kem_key)
                update = self._update(payload, attempt, client, commitments)
            except Refused as refusal:
                attempt.entries.append(entry(client, digest, refusal.name, refusal.reason, len(message)))
                continue
            finally:
                since = time.perf_counter()
                attempt.costs["opening_seconds"] += since - started
            attempt.accepted.add(client)
            attempt.entries.append(entry(client, digest, "accepted", "", len(message)))
            yield replace(update, client=client)
            since = time.perf_counter()
        attempt.waited += time.perf_counter() - since

    def payload(self, message: bytes, attempt: Attempt) -> bytes:
        """What one of the attempt's clients sealed for it.

        Raises:
            Refused: a message that isn't.
        """
        place, sealed, signature = sealing.read(message)
        self._authenticate(place, sealed, signature)
        self._admit(place, attempt)
        return sealing.open_(sealed, place, attempt.kem_key)

    def _update(self, payload: bytes, attempt: Attempt, client: int, commitments: Mapping[str, bytes]) -> Update:
        """The update in a payload, with the client's proof where clients are attested."""
        attesting = bool(self.manifest.client_measurements)
        encoded, fields = sealing.split(payload) if attesting else (payload, None)
        update = sealing.decode(encoded, client, self.layout)
        self._sound(update, client)
        if attesting:
            shown, known = proof.read(fields), commitments.get(str(client))
            with span("attestation", client):
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
        enrolled = self.records[client]
        if update.records != enrolled:
            # Weights are made of it: a client can't grow between enrolment and a round.
            raise Refused("inflated_records", f"client {client} claims {update.records} records, enrolled {enrolled}")


def _awaited(messages: Iterator[bytes]) -> Iterator[bytes]:
    while True:
        with span("waiting"):
            message = next(messages, None)
        if message is None:
            return
        yield message
