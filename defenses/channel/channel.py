"""Who can see an update on its way: the interface of channels, and the plaintext channel."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from privbench.benchmarks.federation.server import Pipeline, Released, RoundContext, ServerState
from privbench.benchmarks.federation.update import Update
from privbench.benchmarks.federation.view import RoundView


@dataclass
class Message:
    """What a client hands to the channel in one phase. Engines carry it and never look inside.

    Args:
        client: who sends it.
        payload: opaque.
        size: bytes on the wire.
        seconds: the client's time from invitation to message.
        state: what the client itself keeps for its next phase or round, never sent.
    """

    client: int
    payload: Any
    size: int
    seconds: float = 0.0
    state: dict[str, Any] = field(default_factory=dict)


class Channel(Protocol):
    """A channel has a client side and a server side, and holds the rest of an update's way.

    Attributes:
        phases: exchanges a round needs, in order; the update is there in all of them.
        plaintext: the server reads single updates, so rules that need them work and a poisoner inside it sees others.
    """

    @property
    def phases(self) -> tuple[str, ...]: ...

    @property
    def plaintext(self) -> bool: ...

    def client(self, phase: str, update: Update, client: int, inbox: Any, state: dict[str, Any]) -> Message:
        """Runs where the client runs: the message of this phase.

        Args:
            phase: one of ``phases``.
            update: after the local mechanism.
            client: who sends.
            inbox: what :meth:`relay` gave this client after the phase before; ``None`` in the first.
            state: the client's own, as it left it.
        """
        ...

    def relay(self, phase: str, messages: list[Message], state: ServerState) -> Mapping[int, Any]:
        """Between phases: what each client receives before its next phase."""
        ...

    def server(
        self, messages: Iterable[Message], pipeline: Pipeline, state: ServerState, context: RoundContext
    ) -> tuple[Released, dict[str, RoundView], ServerState]:
        """Runs where the channel ends: the last phase's messages in client order become the next model.

        Returns:
            What is released, each adversary's view of the round, and the state (its ``model`` and ``round`` are the
            caller's to advance).
        """
        ...


@dataclass(frozen=True)
class Plaintext:
    """The server reads every update (TLS may hide them from the network)."""

    phases = ("update",)
    plaintext = True

    def client(self, phase: str, update: Update, client: int, inbox: Any, state: dict[str, Any]) -> Message:
        size = update.vector.nbytes + sum(t.nbytes for t in update.extras.values())
        return Message(client, update, size, state=state)

    def relay(self, phase: str, messages: list[Message], state: ServerState) -> Mapping[int, Any]:
        raise AssertionError("a channel of one phase relays nothing")

    def server(
        self, messages: Iterable[Message], pipeline: Pipeline, state: ServerState, context: RoundContext
    ) -> tuple[Released, dict[str, RoundView], ServerState]:
        kept: dict[int, Update] = {}
        sizes: dict[int, int] = {}
        seconds: dict[int, float] = {}

        def opened() -> Iterator[Update]:
            for message in messages:
                sizes[message.client], seconds[message.client] = message.size, message.seconds
                if message.client in context.watched:
                    kept[message.client] = message.payload
                yield message.payload

        sent = state.model
        released = pipeline.run(opened(), state, context)
        # Whoever stores or trains the model sees it before and after; a participant as well as a recipient.
        outside = RoundView(context.round, sent=sent, released=released.model)
        took_part = tuple(sorted(sizes))
        network = RoundView(context.round, participants=took_part, sizes=sizes, seconds=seconds)
        operator = RoundView(
            context.round, sent, released.model, took_part, kept, released.aggregate, context.crafted, sizes, seconds
        )
        views = {
            "server_operator": operator,
            "active_operator": operator,
            "network": network,
            "participant": outside,
            "model_recipient": outside,
        }
        return released, views, state
