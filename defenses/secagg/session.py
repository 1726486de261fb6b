"""Secure aggregation at work in one run: four phases a round, and an operator who sees a sum."""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.sampling import answering
from privbench.benchmarks.federation.server import Pipeline, Released, RoundContext, ServerState
from privbench.benchmarks.federation.spans import span
from privbench.benchmarks.federation.view import RoundView, by_adversary
from privbench.defenses.aggregation import Diverged, Sum
from privbench.defenses.channel.channel import RoundRefused, Setup, Turn
from privbench.defenses.channel.message import Message
from privbench.defenses.secagg import client as clients
from privbench.defenses.secagg.parameters import Parameters
from privbench.defenses.secagg.server import Collection

if TYPE_CHECKING:
    from privbench.defenses.channel.secagg import SecAgg

KEY, SHARE = 32, 32
"""Bytes of a public key and of a share."""


class SecAggSession:
    """The protocol in a federation. A client's side uses the parameters, what it is sent and its own state alone."""

    phases = ("advertise", "share", "update", "unmask")
    trains = "update"
    assurance = "none"

    def __init__(self, channel: "SecAgg", setup: Setup):
        self._channel, self._seed, self._size = channel, setup.seed, setup.layout.size
        self._parameters: Parameters = channel.parameters(setup)
        self._open: Collection | None = None
        self._sent: defaultdict[int, int] = defaultdict(int)
        self._received: defaultdict[int, int] = defaultdict(int)
        self._seconds: defaultdict[int, float] = defaultdict(float)
        self._costs: defaultdict[str, float] = defaultdict(float)

    def client(
        self, phase: str, turn: Turn | None, client: int, received: Tensor, inbox: Any, state: dict[str, Any]
    ) -> Message:
        begin = time.perf_counter()
        if phase == "advertise":
            with span("encryption", client):
                given, mine = clients.advertise(self._parameters, client, inbox)
            return _message(client, given, 2 * KEY, mine, "sharing", begin)
        mine: clients.Secrets = state["secrets"]
        if phase == "share":
            with span("encryption", client):
                sealed, mine = clients.share(self._parameters, client, inbox, mine)
            return _message(client, sealed, sum(map(len, sealed.values())), mine, "sharing", begin, _keys(inbox))
        if phase == "update":
            assert turn is not None
            update = turn.update(received)
            if not all(bool(torch.isfinite(part).all()) for part in (update.vector, *update.extras.values())):
                raise Diverged(f"a client's update holds NaN or infinity in round {mine.round}")
            begin = time.perf_counter()
            with span("encryption", client):
                masked, mine = clients.mask(self._parameters, client, update, inbox, mine)
            size, came = masked.integers.nbytes, received.nbytes + _shares(inbox)
            return _message(client, masked, size, mine, "masking", begin, came)
        with span("encryption", client):
            shares = clients.unmask(self._parameters, client, inbox, mine)
        # Keys are of one round: with them a client would answer a second time.
        return _message(client, shares, SHARE * len(shares), None, "sharing", begin, _asked(inbox))

    def relay(self, phase: str, messages: Iterable[Message], state: ServerState) -> Mapping[int, Any]:
        number = state.round + 1
        if phase == "advertise":
            self._begin(number)
        assert self._open is not None
        take = {"advertise": self._open.join, "share": self._open.share, "update": self._open.add}[phase]
        came = []
        for message in messages:
            self._count(message)
            with span("encryption"):
                take(message.client, message.payload)
            came.append(message.client)
        return {"advertise": self._keys, "share": self._shares, "update": self._asked}[phase](came)

    def _begin(self, number: int) -> None:
        self._open = Collection(self._parameters, number)
        for counted in (self._sent, self._received, self._seconds, self._costs):
            counted.clear()

    def _keys(self, came: list[int]) -> Mapping[int, Any]:
        opened = self._collection
        opened.enough(len(came), "joined")
        return {c: self._give(c, opened.joined, _keys(opened.joined)) for c in came}

    def _shares(self, came: list[int]) -> Mapping[int, Any]:
        opened = self._collection
        opened.enough(len(came), "shared keys")
        staying = self._staying(came, self._channel.late_dropout, "late_dropout")
        given = {c: opened.for_client(c) for c in staying}
        return {c: self._give(c, sealed, _shares(sealed)) for c, sealed in given.items()}

    def _asked(self, came: list[int]) -> Mapping[int, Any]:
        opened = self._collection
        opened.enough(len(came), "sent an update")
        asked = opened.unmasking()
        staying = self._staying(came, self._channel.unmask_dropout, "unmask_dropout")
        return {c: self._give(c, asked, _asked(asked)) for c in staying}

    def _staying(self, came: list[int], dropout: float, purpose: str) -> tuple[int, ...]:
        """Who goes on to the next phase: the simulated drop-outs are drawn here."""
        return answering(tuple(sorted(came)), dropout, stream(self._seed, purpose, self._collection.round))

    @property
    def _collection(self) -> Collection:
        assert self._open is not None
        return self._open

    def _give(self, client: int, inbox: Any, size: int) -> Any:
        self._received[client] += size
        return inbox

    def _count(self, message: Message) -> None:
        self._sent[message.client] += message.size
        self._seconds[message.client] += message.seconds
        for name, value in message.costs.items():
            self._costs[name] += value

    def server(
        self, messages: Iterable[Message], pipeline: Pipeline, state: ServerState, context: RoundContext
    ) -> tuple[Released, dict[str, RoundView]]:
        answers = {}
        for message in messages:
            self._count(message)
            answers[message.client] = message.payload
        begin = time.perf_counter()
        with span("encryption"):
            found = self._collection.open(answers, self._size)
        self._costs["unmasking_seconds"] = time.perf_counter() - begin
        self._costs["received_bytes"] = sum(self._received.values()) / len(self._received)
        total = Sum(context, found.vector, float(found.weight), found.records, dict(found.extras))
        released = pipeline.run_sum(total, state, context, found.clients, self._named_costs())
        self._open = None
        sizes, seconds = dict(self._sent), dict(self._seconds)
        seen = RoundView(
            context.round,
            state.model,
            released.model,
            found.clients,
            {},
            released.aggregate,
            context.crafted,
            sizes,
            seconds,
        )
        return released, by_adversary(seen)

    def _named_costs(self) -> dict[str, float]:
        return {f"channel_{name}": value for name, value in self._costs.items()}

    def stored(self, state: ServerState, context: RoundContext) -> None:
        return None

    def begun(self, round: int) -> None:
        return None

    def recover(self, state: ServerState) -> None:
        raise RoundRefused("lost: a round of secure aggregation can't be taken up again")

    def close(self, over: bool = False) -> None:
        pass


def _keys(joined: Mapping[int, Any]) -> int:
    """Bytes of everybody's public keys."""
    return 2 * KEY * len(joined)


def _shares(sealed: Mapping[int, bytes]) -> int:
    """Bytes of the shares that were sealed to one client."""
    return sum(map(len, sealed.values()))


def _asked(asked: clients.Unmasking) -> int:
    """Bytes of who is left: one bit a client that shared keys."""
    return (len(asked.survivors) + len(asked.dropped) + 7) // 8


def _message(
    client: int, payload: Any, size: int, mine: clients.Secrets | None, what: str, begin: float, received: int = 0
) -> Message:
    costs = {f"{what}_seconds": time.perf_counter() - begin}
    return Message(client, payload, size, state={"secrets": mine} if mine else {}, costs=costs, received=received)
