"""The attested channel at work in one run.

The coordinating process carries sealed messages between worker processes and the attested process and can read none.
"""

import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from torch import Tensor

from privbench.benchmarks.build import describe
from privbench.benchmarks.federation.server import Pipeline, Released, RoundContext, ServerState
from privbench.benchmarks.federation.view import RoundView, by_adversary
from privbench.defenses.channel.channel import Message, Setup, Turn
from privbench.defenses.tee.protocol import guests, proof, sealing
from privbench.defenses.tee.protocol import state as states
from privbench.defenses.tee.protocol.manifest import Refused
from privbench.defenses.tee.protocol.opening import FIRST, Head, Opening, Relying, opened
from privbench.defenses.tee.protocol.run import Run

if TYPE_CHECKING:
    from privbench.defenses.channel.attested import Attested


class AttestedSession:
    """The attested channel at work. What a client does here uses nothing that only the coordinator has."""

    phases = ("join", "update")

    def __init__(self, channel: "Attested", setup: Setup, finished: int):
        self._run = Run(channel, setup, finished)
        self._attempt = (0, 0)
        """Round and number of the last attempt, over restarts of the aggregator too; no client answers one twice."""

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
            sealed, costs = made(opening, turn, client, received, inbox, state)
        except Refused as refusal:
            return Message(client, refusal, 0, state=state)
        message = sealing.sign(sealed, sealing.place(opening, client), self._run.client_keys[client])
        kept = {"head": (opening.round - 1, opening.previous), "answered": (opening.round, opening.attempt)}
        return Message(client, message, len(message), state=kept, costs=costs)

    def _here(
        self, opening: Opening, turn: Turn, client: int, received: Tensor, inbox: Any, state: dict[str, Any]
    ) -> tuple[bytes, dict[str, float]]:
        """Check the opening, train, and seal: nothing is trained for an aggregator that is refused."""
        started = time.perf_counter()
        relying = _relying(self._run.relying_on, tuple(inbox["certificates"]))
        head, age = Head(*state.get("head", (0, FIRST))), time.monotonic() - state["time"]
        relying.check(opening, client, state["nonce"], inbox["path"], sealing.model_digest(received), head, age)
        checked = time.perf_counter()
        update = turn.update()
        trained = time.perf_counter()
        sealed = sealing.enclose(sealing.encode(update), sealing.place(opening, client), opening.kem_key)
        return sealed, {"checking_seconds": checked - started, "sealing_seconds": time.perf_counter() - trained}

    def _in_guest(
        self, opening: Opening, turn: Turn, client: int, received: Tensor, inbox: Any, state: dict[str, Any]
    ) -> tuple[bytes, dict[str, float]]:
        """Have the client's guest check, train, prove and seal; its host hands over records and settings."""
        records = turn.records()
        agreed = self._run.manifest.training or {}
        used = {**agreed, "work": describe(turn.work), "local": describe(turn.local)}
        request = {
            "manifest": self._run.manifest.canonical(),
            "opening": dict(inbox["opening"]),
            "certificates": list(inbox["certificates"]),
            "path": inbox["path"],
            "nonce": state["nonce"],
            "age": time.monotonic() - state["time"],
            "head": list(state.get("head", (0, FIRST))),
            "client": client,
            "model": sealing.floats(received),
            "training": proof.settings_bytes(used),
            "records": states.encode({"x": records.x, "y": records.y}),
            "salt": self._run.salt(client),
        }
        kind = "tampered" if turn.tampers == "code" else "agreed"
        answer = guests.ask(inbox["guests"][kind], request)
        if turn.tampers != "message":
            return answer["sealed"], answer["costs"]
        # A poisoner's host sends an update of its own with its guest's evidence.
        payload = sealing.attested(sealing.encode(turn.update()), answer["proof"])
        return sealing.enclose(payload, sealing.place(opening, client), opening.kem_key), answer["costs"]

    def relay(self, phase: str, messages: list[Message], state: ServerState) -> Mapping[int, Any]:
        tried = [self._attempt, *(tuple(kept.get("answered", (0, 0))) for kept in state.clients.values())]
        last = max((attempt for number, attempt in tried if number == state.round + 1), default=0)
        self._attempt = (state.round + 1, last + 1)
        joins = {m.client: m.payload for m in messages}
        answer = self._run.open(*self._attempt, joins)
        shared = {"opening": answer["opening"], "certificates": answer["certificates"], "guests": self._run.guests}
        return {c: {**shared, "path": answer["paths"][str(c)]} for c in joins}

    def server(
        self, messages: Iterable[Message], pipeline: Pipeline, state: ServerState, context: RoundContext
    ) -> tuple[Released, dict[str, RoundView], ServerState]:
        if self._run.opened != context.round:
            # A cohort without clients: nobody joined, and the round is opened all the same.
            messages = list(messages)
            self.relay("join", [], state)
        costs: defaultdict[str, float] = defaultdict(float)
        sizes: dict[int, int] = {}
        seconds: dict[int, float] = {}

        def sealed() -> Iterable[bytes]:
            for message in messages:
                for name, value in message.costs.items():
                    costs[name] += value
                if isinstance(message.payload, Refused):
                    self._run.refused(context.round, message.client, message.payload, "client")
                    continue
                sizes[message.client], seconds[message.client] = message.size, message.seconds
                yield message.payload

        answer = self._run.close_round(context.round, sealed(), lambda: {"sizes": sizes, "seconds": seconds}, costs)
        return self._outcome(answer, state, context)

    def stored(
        self, state: ServerState, context: RoundContext
    ) -> tuple[Released, dict[str, RoundView], ServerState] | None:
        answer = self._run.stored
        return self._outcome(answer, state, context) if answer and answer["round"] == context.round else None

    def recover(self, state: ServerState) -> None:
        self._run.restart()

    @property
    def assurance(self) -> str:
        return self._run.assurance()

    def close(self) -> None:
        self._run.close()

    def _outcome(
        self, answer: dict[str, Any], state: ServerState, context: RoundContext
    ) -> tuple[Released, dict[str, RoundView], ServerState]:
        model, extras = sealing.vector(answer["model"]), states.decode(answer["extras"])
        kept = states.decode(answer["state"])
        state.optimizer, state.rule, state.release = kept["optimizer"], kept["rule"], kept["release"]
        sizes = {int(c): n for c, n in answer["sizes"].items()}
        seconds = {int(c): s for c, s in answer["seconds"].items()}
        took_part, sent = tuple(sorted(sizes)), state.model
        operator = RoundView(context.round, sent, model, took_part, {}, None, context.crafted, sizes, seconds)
        costs = {f"channel_{name}": value for name, value in answer["costs"].items()}
        refused = Counter(name for _, name, _ in answer["verdicts"] if name != "accepted")
        released = Released(model, extras, costs=costs, refused=refused, attempts=answer["attempt"])
        return released, by_adversary(operator), state


@lru_cache(maxsize=4)
def _relying(on: Any, certificates: tuple[bytes, ...]) -> Relying:
    """Parsed once a process: what each of its clients relies on is the same, what each checks is its own."""
    return on.relying(certificates)
