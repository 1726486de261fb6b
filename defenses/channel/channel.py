"""Who can see an update on its way: the interface of channels, and the plaintext channel."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from torch import Tensor

from privbench.benchmarks.federation.server import Pipeline, Released, RoundContext, ServerState
from privbench.benchmarks.federation.update import Kind, Layout, Update
from privbench.benchmarks.federation.view import RoundView, by_adversary
from privbench.defenses.channel.message import Message

if TYPE_CHECKING:
    from privbench.benchmarks.federation.settings import LocalWork
    from privbench.benchmarks.tasks.task import Split
    from privbench.defenses.accounting.plan import Facts, Plan, Privacy
    from privbench.defenses.local import Local


class ChannelLost(RuntimeError):
    """The channel's far end is gone in the middle of a round; nothing of the round was released."""


class RoundRefused(RuntimeError):
    """The round doesn't go on, with a name; nothing was released."""


@dataclass(frozen=True)
class Setup:
    """What a channel needs to know of a run before its first round.

    Args:
        run: the run's name.
        seed: the run's.
        model: the initial model, ``(layout.size,)``.
        layout: of all vectors.
        pipeline: the rest of an update's way.
        privacy: the guarantee that the defense claims, if any.
        facts: what of the federation a guarantee depends on.
        weighting: ``records`` or ``equal``.
        share: what clients send.
        learning_rate: the clients'.
        schema: the task in words that don't change between runs: its name, shape and classes.
        folder: where the channel keeps what outlives the run; ``None`` for nowhere.
        training: what clients train and how, as a configuration; ``None`` where it can't be written down.
        tampered: files of the suite that the poisoner's clients replace in what they run, by path below
            ``privbench/``.
        workers: processes that clients run in.
    """

    run: str
    seed: int
    model: Tensor
    layout: Layout
    pipeline: Pipeline
    privacy: "Privacy | None"
    facts: "Facts"
    weighting: str
    share: Kind
    learning_rate: float
    schema: str
    folder: Path | None = None
    training: Mapping[str, Any] | None = None
    tampered: Mapping[str, bytes] = field(default_factory=dict)
    workers: int = 1


class Turn(Protocol):
    """One client's work in a round, done when the channel asks for it."""

    def update(self, received: Tensor) -> Update:
        """Trained here from ``received``, after the local mechanism and whatever the client's poisoner does."""
        ...

    def records(self) -> "Split":
        """What it trains on."""
        ...

    @property
    def work(self) -> "LocalWork":
        """How it trains."""
        ...

    @property
    def local(self) -> "Local":
        """The mechanism that it applies."""
        ...

    @property
    def tampers(self) -> Literal["code", "message"] | None:
        """Under attestation: ``code``, its guest runs other code; ``message``, another update than its guest made is
        sent with that guest's evidence."""
        ...


class Session(Protocol):
    """A channel at work in one run. It has a client side and a server side, and holds the rest of an update's way.

    Attributes:
        phases: exchanges that a round needs, in order.
        trains: the one of them in which the client trains.
    """

    @property
    def phases(self) -> tuple[str, ...]: ...

    @property
    def trains(self) -> str: ...

    def client(
        self, phase: str, turn: Turn | None, client: int, received: Tensor, inbox: Any, state: dict[str, Any]
    ) -> Message:
        """Runs where the client runs: the message of this phase.

        Args:
            phase: one of ``phases``.
            turn: the client's work in the phase in which it trains; ``None`` in others.
            client: who sends.
            received: the model that was sent to it, ``(layout.size,)``.
            inbox: what :meth:`relay` gave this client after the phase before; in the first, the round's number.
            state: the client's own, as it left it.
        """
        ...

    def relay(self, phase: str, messages: Iterable[Message], state: ServerState) -> Mapping[int, Any]:
        """Between phases: what each client receives before its next phase; who receives nothing is out of the round.

        Raises:
            RoundRefused: if the round can't go on.
        """
        ...

    def server(
        self, messages: Iterable[Message], pipeline: Pipeline, state: ServerState, context: RoundContext
    ) -> tuple[Released, dict[str, RoundView]]:
        """Runs where the channel ends: the last phase's messages in client order become the next model.

        Returns:
            What is released, and each adversary's view of the round. ``state`` is changed in place, but for its
            ``model`` and ``round``, which are the caller's to advance.

        Raises:
            ChannelLost: if the round can be tried again after :meth:`recover`.
            RoundRefused: if it can't, and nothing is released.
        """
        ...

    def stored(self, state: ServerState, context: RoundContext) -> tuple[Released, dict[str, RoundView]] | None:
        """What :meth:`server` returned for this round before the run was cut off, if it was released already."""
        ...

    def begun(self, round: int) -> int | None:
        """Attempts at a round that were begun, in a process before this one too; ``None``: the channel counts none."""
        ...

    def recover(self, state: ServerState) -> None:
        """Make a new start after :class:`ChannelLost`.

        Raises:
            Unavailable: it can't be had.
        """
        ...

    @property
    def assurance(self) -> str:
        """What stands behind the channel: ``none``, ``software`` or ``hardware``, recomputed from its evidence."""
        ...

    def close(self, over: bool = False) -> None:
        """End it. Safe to call twice.

        Args:
            over: the run is, too: what was kept for it to go on with is forgotten.
        """
        ...


class Channel(Protocol):
    """Who can see an update on its way: a configuration, which starts a :class:`Session` for each run.

    Attributes:
        plaintext: an adversary at the server reads single updates.
        sums_only: the far end reads a sum alone, so that only rules that are sums work.
        apart: clients must not run in the coordinating process.
        isolation: what separates server and clients where ``apart``; ``same_process`` where nothing need.
        grid: messages are summed as multiples of this; ``None``: as they are.
        dropout: probability that a client that has begun a round is not in its sum, beside ``federation.dropout``.
    """

    @property
    def plaintext(self) -> bool: ...

    @property
    def sums_only(self) -> bool: ...

    @property
    def apart(self) -> bool: ...

    @property
    def isolation(self) -> str: ...

    @property
    def grid(self) -> float | None: ...

    @property
    def dropout(self) -> float: ...

    def check(self, facts: "Facts", weighting: str, plan: "Plan | None") -> None:
        """Refuse a federation that it can't serve, before anything is trained.

        Raises:
            ConfigError: naming what would be right.
        """
        ...

    def start(self, setup: Setup, state: ServerState) -> Session:
        """Begin, or go on after ``state.round`` rounds."""
        ...


@dataclass(frozen=True)
class Plaintext:
    """The server reads every update (TLS may hide them from the network)."""

    phases = ("update",)
    trains = "update"
    grid = None
    dropout = 0.0
    plaintext = True
    sums_only = False
    apart = False
    isolation = "same_process"
    assurance = "none"

    def check(self, facts: "Facts", weighting: str, plan: "Plan | None") -> None:
        pass

    def start(self, setup: Setup, state: ServerState) -> "Plaintext":
        return self

    def stored(self, state: ServerState, context: RoundContext) -> None:
        return None

    def begun(self, round: int) -> None:
        return None

    def recover(self, state: ServerState) -> None:
        raise AssertionError("a plaintext channel is never lost")

    def close(self, over: bool = False) -> None:
        pass

    def client(
        self, phase: str, turn: Turn | None, client: int, received: Tensor, inbox: Any, state: dict[str, Any]
    ) -> Message:
        assert turn is not None
        update = turn.update(received)
        size = update.vector.nbytes + sum(t.nbytes for t in update.extras.values())
        return Message(client, update, size, state=state, received=received.nbytes)

    def relay(self, phase: str, messages: Iterable[Message], state: ServerState) -> Mapping[int, Any]:
        raise AssertionError("a channel of one phase relays nothing")

    def server(
        self, messages: Iterable[Message], pipeline: Pipeline, state: ServerState, context: RoundContext
    ) -> tuple[Released, dict[str, RoundView]]:
        kept: dict[int, Update] = {}
        sizes: dict[int, int] = {}
        seconds: dict[int, float] = {}

        def opened() -> Iterator[Update]:
            for message in messages:
                sizes[message.client], seconds[message.client] = message.size, message.seconds
                if message.client in context.watched:
                    kept[message.client] = message.payload
                yield replace(message.payload, client=message.client)

        sent = state.model
        released = pipeline.run(opened(), state, context)
        took_part = tuple(sorted(sizes))
        operator = RoundView(
            context.round, sent, released.model, took_part, kept, released.aggregate, context.crafted, sizes, seconds
        )
        return released, by_adversary(operator)
