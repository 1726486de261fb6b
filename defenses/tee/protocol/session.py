"""The attested channel at work in one run.

The coordinating process carries sealed messages between worker processes and the attested process and can read none.
"""

import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from privbench.benchmarks.build import describe
from privbench.benchmarks.federation import spans
from privbench.benchmarks.federation.server import Pipeline, Released, RoundContext, ServerState
from privbench.benchmarks.federation.spans import span
from privbench.benchmarks.federation.usage import Usage
from privbench.benchmarks.federation.view import RoundView, by_adversary
from privbench.defenses.channel.channel import RoundRefused, Setup, Turn
from privbench.defenses.channel.message import Message
from privbench.defenses.tee.protocol import binding, downlink, guests, proof, sealing, unlocking
from privbench.defenses.tee.protocol import state as states
from privbench.defenses.tee.protocol.folder import model_key
from privbench.defenses.tee.protocol.manifest import Refused
from privbench.defenses.tee.protocol.opening import FIRST, Head, Opening, opened
from privbench.defenses.tee.protocol.run import Run
from privbench.defenses.tee.wire import pack, unpack

if TYPE_CHECKING:
    from privbench.defenses.channel.attested import Attested


@dataclass(frozen=True)
class _Given:
    """What one client has in one round.

    Args:
        opening: of the round, not yet checked.
        turn: its work.
        model: that it starts from.
        salt: of the model's digest, where the model came sealed.
        inbox: what the host relayed.
        state: its own memory.
    """

    opening: Opening
    turn: Turn
    client: int
    model: Tensor
    salt: bytes | None
    inbox: Any
    state: dict[str, Any]

    def enclose(self, payload: bytes) -> bytes:
        """Sealed to the aggregator of this round."""
        return sealing.enclose(payload, sealing.place(self.opening, self.client), self.opening.kem_key)


@dataclass(frozen=True)
class _Made:
    """What one client made.

    Args:
        sealed: its update.
        costs: seconds by what they were spent on.
        guest: what its guest took, where it has one.
    """

    sealed: bytes
    costs: dict[str, float]
    guest: Usage = field(default_factory=Usage)


def _size(received: Tensor, inbox: Any) -> int:
    """Bytes that a client gets before it trains: evidence, its path to the root of the nonces, and the model."""
    told = len(pack({name: inbox[name] for name in ("opening", "certificates", "path")}))
    sealed = inbox.get("key")
    return told + (received.nbytes if sealed is None else len(sealed) + Path(inbox["model"]).stat().st_size)


class AttestedSession:
    """The attested channel at work. What a client does here uses nothing that only the coordinator has."""

    phases = ("join", "update")
    trains = "update"

    def __init__(self, channel: "Attested", setup: Setup, state: ServerState):
        self._run = Run(channel, setup, state.round)
        unlocking.remember(self._run, state)
        try:
            unlocking.unlock(self._run, state)
        except BaseException:
            self._run.close()
            raise

    def client(
        self, phase: str, turn: Turn | None, client: int, received: Tensor, inbox: Any, state: dict[str, Any]
    ) -> Message:
        if phase == "join":
            nonce = secrets.token_bytes(32)
            kept = {**state, "nonce": nonce, "time": time.monotonic()}
            return Message(client, nonce, len(nonce), state=kept)
        assert turn is not None
        try:
            opening = opened(inbox["opening"])
            if (opening.round, opening.attempt) <= tuple(state.get("answered", (0, 0))):
                raise Refused("reopened", f"round {opening.round} attempt {opening.attempt} was answered already")
            made = self._in_guest if self._run.manifest.training else self._here
            model, salt = self._received(opening, client, received, inbox)
            done = made(_Given(opening, turn, client, model, salt, inbox, state))
        except Refused as refusal:
            return Message(client, refusal, 0, state=state, received=_size(received, inbox))
        sealed, place = done.sealed, sealing.place(opening, client)
        with span("encryption", client):
            message = sealing.sign(sealed, place, self._run.client_keys[client])
        kept = {"head": (opening.round - 1, opening.previous), "answered": (opening.round, opening.attempt)}
        size = _size(received, inbox)
        return Message(client, message, len(message), state=kept, costs=done.costs, received=size, usage=done.guest)

    def _received(self, opening: Opening, client: int, received: Tensor, inbox: Any) -> tuple[Tensor, bytes | None]:
        """The model that this client starts from, and the salt of its digest where it came sealed."""
        if inbox.get("key") is None:
            return received, None
        with span("encryption", client):
            return self._unsealed(opening, client, inbox)

    def _unsealed(self, opening: Opening, client: int, inbox: Any) -> tuple[Tensor, bytes | None]:
        private, digest, last = model_key(self._run.client_keys[client]), self._run.manifest.digest, opening.round - 1
        key = downlink.open_key(inbox["key"], private, digest, last)
        model = downlink.open_model(Path(inbox["model"]).read_bytes(), key, digest, last)
        return sealing.vector(unpack(model)["model"]), downlink.salt(key)

    def _here(self, given: _Given) -> _Made:
        """Check the opening, train, and seal: nothing is trained for an aggregator that is refused."""
        started = time.perf_counter()
        relying = self._run.relying(tuple(given.inbox["certificates"]))
        head, age = Head(*given.state.get("head", (0, FIRST))), given.inbox["delivered"] - given.state["time"]
        with span("attestation", given.client):
            digest = downlink.digest(sealing.floats(given.model), given.salt)
            relying.check(given.opening, given.client, given.state["nonce"], given.inbox["path"], digest, head, age)
        checked = time.perf_counter()
        update = given.turn.update(given.model)
        trained = time.perf_counter()
        with span("encryption", given.client):
            sealed = given.enclose(sealing.encode(update))
        costs = {"checking_seconds": checked - started, "sealing_seconds": time.perf_counter() - trained}
        return _Made(sealed, costs)

    def _in_guest(self, given: _Given) -> _Made:
        """Have the client's guest check, train, prove and seal; its host hands over records and settings."""
        records = given.turn.records()
        agreed = self._run.manifest.training or {}
        used = {**agreed, "work": describe(given.turn.work), "local": describe(given.turn.local)}
        request = {
            "manifest": self._run.manifest.canonical(),
            "opening": dict(given.inbox["opening"]),
            "certificates": list(given.inbox["certificates"]),
            "tcb_floor": self._run.relying_on.tcb_floor,
            "path": given.inbox["path"],
            "nonce": given.state["nonce"],
            "age": given.inbox["delivered"] - given.state["time"],
            "head": list(given.state.get("head", (0, FIRST))),
            "client": given.client,
            "model": sealing.floats(given.model),
            "model_salt": given.salt,
            "training": proof.settings_bytes(used),
            "records": states.encode({"x": records.x, "y": records.y}),
            "salt": self._run.salt(given.client),
            "spans": spans.recording(),
        }
        kind = "tampered" if given.turn.tampers == "code" else "agreed"
        answer = guests.ask(given.inbox["guests"][kind], request, self._run.channel.patience)
        spans.adopt(spans.read(answer["spans"]))
        made = _Made(answer["sealed"], answer["costs"], Usage(**answer["usage"]))
        if given.turn.tampers != "message":
            return made
        # A poisoner's host sends an update of its own with its guest's evidence.
        payload = sealing.attested(sealing.encode(given.turn.update(given.model)), answer["proof"])
        return replace(made, sealed=given.enclose(payload))

    def relay(self, phase: str, messages: Iterable[Message], state: ServerState) -> Mapping[int, Any]:
        came = list(messages)
        number, last = self._run.folder.attempted()
        attempt = last + 1 if number == state.round + 1 else 1
        joins = {m.client: m.payload for m in came if binding.is_nonce(m.payload)}
        for client in sorted({m.client for m in came} - set(joins)):
            # One client's mistake must not stop the others' round.
            refusal = Refused("malformed_nonce", f"{binding.NONCE} bytes are right")
            self._run.refusals.add(state.round + 1, client, refusal, "host")
        answer = self._run.open(state.round + 1, attempt, joins)
        shared = {"opening": answer["opening"], "certificates": answer["certificates"], "guests": self._run.guests}
        # All clients receive the opening now, each by its own clock. A simulated one trains when its turn has come.
        shared["delivered"] = time.monotonic()
        return {c: {**shared, "path": answer["paths"][str(c)], **self._run.sealed_for(c)} for c in joins}

    def server(
        self, messages: Iterable[Message], pipeline: Pipeline, state: ServerState, context: RoundContext
    ) -> tuple[Released, dict[str, RoundView]]:
        costs: defaultdict[str, float] = defaultdict(float)
        sizes: dict[int, int] = {}
        seconds: dict[int, float] = {}
        refused: list[int] = []

        def sealed() -> Iterable[bytes]:
            for message in messages:
                for name, value in message.costs.items():
                    costs[name] += value
                if isinstance(message.payload, Refused):
                    self._run.refusals.add(context.round, message.client, message.payload, "client")
                    refused.append(message.client)
                    continue
                sizes[message.client], seconds[message.client] = message.size, message.seconds
                yield message.payload

        coming = sealed()
        first = list(islice(coming, 1))
        if refused and not first and not self._run.manifest.least_cohort:
            # A sampled round may be empty, and is released as noise; one that all who joined refuse must not be.
            why = self._run.refusals.why(context.round)
            raise RoundRefused(f"no_update: nobody sends one in round {context.round}, nothing is released{why}")
        seen = {"sizes": sizes, "seconds": seconds}
        answer = self._run.close_round(context.round, chain(first, coming), lambda: seen, costs)
        return self._outcome(answer, state, context)

    def stored(self, state: ServerState, context: RoundContext) -> tuple[Released, dict[str, RoundView]] | None:
        answer = self._run.folder.stored
        return self._outcome(answer, state, context) if answer and answer["round"] == context.round else None

    def begun(self, round: int) -> int:
        number, last = self._run.folder.attempted()
        return last if number == round else 0

    def recover(self, state: ServerState) -> None:
        self._run.restart()
        unlocking.unlock(self._run, state)

    @property
    def assurance(self) -> str:
        return self._run.assurance()

    def close(self, over: bool = False) -> None:
        self._run.close(over)

    def _outcome(
        self, answer: dict[str, Any], state: ServerState, context: RoundContext
    ) -> tuple[Released, dict[str, RoundView]]:
        sealed = "keys" in answer
        found = self._run.measured(answer) if sealed else answer
        model, extras = sealing.vector(found["model"]), states.decode(found["extras"])
        if not sealed:
            kept = states.decode(answer["state"])
            state.optimizer, state.rule, state.release = kept["optimizer"], kept["rule"], kept["release"]
        sizes = {int(c): n for c, n in answer["sizes"].items()}
        seconds = {int(c): s for c, s in answer["seconds"].items()}
        took_part, sent = tuple(sorted(sizes)), state.model
        full = RoundView(context.round, sent, model, took_part, {}, None, context.crafted, sizes, seconds)
        costs = {f"channel_{name}": value for name, value in answer["costs"].items()}
        refused = Counter(name for _, name, _ in answer["verdicts"] if name != "accepted")
        released = Released(model, extras, costs=costs, refused=refused)
        return released, by_adversary(full, models=not sealed)
