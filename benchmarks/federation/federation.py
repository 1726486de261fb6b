"""The only training loop: a federation is a generator of rounds."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from privbench.attacks.poisoning.poisoner import Poisoner
from privbench.benchmarks.build import require
from privbench.benchmarks.federation import attested
from privbench.benchmarks.federation import engine as engines
from privbench.benchmarks.federation.client import ClientSide, Job, take_turn
from privbench.benchmarks.federation.distribution import Distribution, Honest
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.sampling import answering, cohort
from privbench.benchmarks.federation.server import Pipeline, Released, RoundContext, ServerSGD, ServerState
from privbench.benchmarks.federation.settings import FederationSettings
from privbench.benchmarks.federation.update import Layout, Update
from privbench.benchmarks.federation.view import Public, RoundView, View, unprotected
from privbench.benchmarks.tasks.classification import Classification
from privbench.benchmarks.tasks.models.architecture import Architecture
from privbench.defenses import Defense
from privbench.defenses.accounting import ClientPlan, Facts
from privbench.defenses.aggregation import Diverged
from privbench.defenses.channel import Attested, ChannelLost, Message, Session, Setup

ATTEMPTS = 2
"""At a round whose channel is lost; then the run stops, with the reason."""


@dataclass(frozen=True)
class Round:
    """What happened in one round.

    Args:
        round: from 1.
        state: the server's state after it.
        invited, answered: who was drawn, and who sent an update.
        views: each adversary's view up to this round: the rounds that it kept, and this one.
        released: what left the channel.
        seconds: wall time by part: ``round``, ``clients`` (waiting for them), ``server`` (the rest).
    """

    round: int
    state: ServerState
    invited: tuple[int, ...]
    answered: tuple[int, ...]
    views: dict[str, View]
    released: Released
    seconds: dict[str, float]


@dataclass
class Federation:
    """A federation of simulated clients under one defense, with at most one poisoner.

    Args:
        settings: who takes part, how often, how the server steps.
        task: data, loss, evaluation.
        model: the initial global model.
        defense: the four stations.
        poisoner: owns the last ``poisoner.clients`` clients; ``None`` for nobody.
        seed: names every random stream.
        watched: clients whose updates views keep (where the channel shows them).
        keep: rounds whose views later rounds still hold; others are dropped after their round.
        device: where clients train.
        distribution: how the model reaches clients.
        architecture: the model's configuration, which attested clients build it from; ``None`` where there is none.

    Raises:
        ConfigError: for a combination that can't run, before anything is trained.
    """

    settings: FederationSettings
    task: Classification
    model: nn.Module
    defense: Defense = field(default_factory=Defense)
    poisoner: Poisoner | None = None
    seed: int = 0
    watched: frozenset[int] = frozenset()
    keep: frozenset[int] = frozenset()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    distribution: Distribution = field(default_factory=Honest)
    architecture: Architecture | None = None

    def __post_init__(self) -> None:
        settings = self.settings
        self.clients = number_of_clients(settings, self.task)
        self.task.check(self.clients)
        self.shares = self.task.split(self.clients, self.seed)
        self.layout = Layout.of(self.model)
        private = self.defense.privacy is not None and self.defense.privacy.unit == "client"
        self.sampling = settings.sampling or ("poisson" if private and settings.participation < 1 else "fixed")
        self.weighting = settings.weighting or ("equal" if private else "records")
        require(
            not private or self.weighting == "equal",
            "federation.weighting",
            self.weighting,
            "a client-level guarantee needs equal weights: set equal (or null)",
        )
        require(
            self.task.separable or not self.defense.local.private,
            "defense.local",
            type(self.defense.local).__name__,
            f"no DP-SGD: the loss of {type(self.task).__name__} doesn't separate by record",
        )
        self.defense.check(self.model, self.layout)
        self.facts = self._facts()
        self.plan = self.defense.bind(self.facts)
        attackers = self.poisoner.clients if self.poisoner else 0
        require(
            attackers <= self.clients,
            "poisoning.clients",
            attackers,
            f"at most the number of clients, {self.clients}",
        )
        tampering = attackers if self.poisoner and self.poisoner.tampers else 0
        require(
            not isinstance(self.plan, ClientPlan) or self.plan.tolerates(tampering),
            "defense.privacy.honest",
            getattr(self.defense.privacy, "honest", None),
            f"{tampering} of {self.clients} clients tamper and add no noise: count on the others alone",
        )
        self.attackers = frozenset(range(self.clients - attackers, self.clients))
        if self.attests:
            attested.check(self)

    @property
    def attests(self) -> bool:
        """Whether clients train in attested guests."""
        return isinstance(self.defense.channel, Attested) and self.defense.channel.attest_clients

    def _facts(self) -> Facts:
        records = tuple(len(s) for s in self.shares)
        work = self.settings.local
        return Facts(
            clients=self.clients,
            rounds=self.settings.rounds,
            participation=self.settings.participation,
            sampling=self.sampling,
            records=records,
            batch=tuple(work.batch(n) for n in records),
            steps=tuple(work.local_steps(n) for n in records),
            operator_reads_updates=self.defense.channel.plaintext,
            dropout=self.settings.dropout,
        )

    @property
    def public(self) -> Public:
        """What everyone in this federation knows."""
        spec, work = self.task.spec, self.settings.local
        return Public(
            model=self.model,
            layout=self.layout,
            loss=self.task.loss,
            shape=spec.shape,
            classes=len(spec.classes),
            mean=spec.mean,
            std=spec.std,
            kind=work.share,
            learning_rate=work.learning_rate,
            local_steps=work.local_steps,
            server=self.settings.server,
            known=self.plan.known if self.plan else unprotected,
        )

    def workers(self, parallel_jobs: int = 1) -> int:
        """Processes for clients: the setting, else the cores' share of one of ``parallel_jobs``."""
        return min(self.clients, self.settings.workers or max(1, engines.cores() // parallel_jobs))

    def start(self) -> ServerState:
        """The state before the first round."""
        return ServerState(round=0, model=self.layout.read(self.model))

    def session(self, state: ServerState, run: str = "run", folder: Path | None = None, workers: int = 1) -> Session:
        """The channel at work in this run, before its first round or after ``state.round`` of them.

        Args:
            run: the run's name.
            folder: where the channel keeps what outlives the run.
            workers: processes that clients run in.

        Raises:
            Unavailable: if the channel can't be had here.
        """
        spec = self.task.spec
        setup = Setup(
            run=run,
            seed=self.seed,
            model=self.layout.read(self.model),
            layout=self.layout,
            pipeline=self._pipeline,
            privacy=self.defense.privacy,
            facts=self.facts,
            weighting=self.weighting,
            share=self.settings.local.share,
            learning_rate=self.settings.local.learning_rate,
            schema=f"{spec.name} {spec.shape} {spec.classes}",
            folder=folder,
            training=attested.training(self) if self.attests else None,
            tampered=self.poisoner.patches(self._owned) if self.attests and self.poisoner else {},
            workers=workers,
        )
        return self.defense.channel.start(setup, state)

    @property
    def _pipeline(self) -> Pipeline:
        return Pipeline(self.defense.aggregation, self.defense.release, self.settings.server)

    def client_side(self, session: Session | None = None) -> ClientSide:
        """What an engine's processes need to run clients.

        Args:
            session: the channel at work; ``None`` starts one.
        """
        return ClientSide(
            seed=self.seed,
            data=self.task.data.train,
            shares=self.shares,
            spec=self.task.spec,
            trigger=self.task.trigger,
            model=self.model,
            layout=self.layout,
            loss=self.task.loss,
            work=self.settings.local,
            local=self.defense.local,
            channel=session or self.session(self.start()),
            plan=self.plan,
            poisoner=self.poisoner,
            attackers=self.attackers,
            weights=self._weights(),
            received=torch.empty(self.layout.size).share_memory_(),
            device=self.device,
        )

    @property
    def _owned(self) -> float:
        weights = self._weights()
        return min(1.0, sum(weights[c] for c in self.attackers))

    def _weights(self) -> list[float]:
        size = [float(n) if self.weighting == "records" else 1.0 for n in self.facts.records]
        server = self.settings.server
        rate = server.learning_rate if isinstance(server, ServerSGD) else 1.0
        return [s * rate / (self.settings.participation * sum(size)) for s in size]

    def run(self, state: ServerState, side: ClientSide, engine: engines.Engine) -> Iterator[Round]:
        """Rounds from the one after ``state`` to the last.

        Args:
            state: from :meth:`start` or a checkpoint; changed in place.
            side: from :meth:`client_side`, the context that ``engine`` was made with.
            engine: where clients run.

        Raises:
            Diverged: if the model leaves the finite numbers.
            WorkerDied, ClientFailed: if a worker dies or a client function raises.
        """
        pipeline, channel = self._pipeline, side.channel
        public = self.public
        while state.round < self.settings.rounds:
            begin = time.perf_counter()
            number = state.round + 1
            invited = cohort(
                self.clients, self.settings.participation, self.sampling, stream(self.seed, "cohort", number)
            )
            here = answering(invited, self.settings.dropout, stream(self.seed, "dropout", number))
            side.received.copy_(state.model)
            context = RoundContext(
                seed=self.seed,
                round=number,
                invited=invited,
                expected=self.settings.participation * self.clients,
                weighting=self.weighting,
                layout=self.layout,
                kind=self.settings.local.share,
                learning_rate=self.settings.local.learning_rate,
                plan=self.plan,
                watched=self.watched,
                crafted=self._crafted(state.model, here),
            )
            timer = _Timer()
            outcome = channel.stored(state, context)
            for attempt in range(ATTEMPTS) if outcome is None else ():
                try:
                    messages = timer.waiting(self._messages(here, context, state, side, engine))
                    outcome = channel.server(messages, pipeline, state, context)
                    break
                except ChannelLost:
                    if attempt + 1 == ATTEMPTS:
                        raise
                    channel.recover(state)
            assert outcome is not None
            released, views, state = outcome
            if not bool(torch.isfinite(released.model).all()):
                raise Diverged(f"the model holds NaN or infinity after round {number}")
            state.model, state.round = released.model, number
            if self.plan:
                state.ledger += [self.plan.charge(number, invited) for _ in range(released.attempts)]
            seen = self._remember(state, views, number, public)
            total = time.perf_counter() - begin
            seconds = {"round": total, "clients": timer.seconds, "server": total - timer.seconds}
            yield Round(number, state, invited, here, seen, released, seconds)

    def _messages(
        self,
        here: tuple[int, ...],
        context: RoundContext,
        state: ServerState,
        side: ClientSide,
        engine: engines.Engine,
    ) -> Iterator[Message]:
        """The last phase's messages: honest clients first, in order, then the poisoner's."""
        channel, number = side.channel, context.round
        jobs = [
            Job(c, number, channel.phases[0], context.crafted.get(c), state=state.clients.get(c, {}))
            for c in sorted(here, key=lambda c: (c in self.attackers, c))
        ]
        for phase in channel.phases[:-1]:
            messages = list(self._phase(jobs, engine))
            inbox = channel.relay(phase, messages, state)
            following = channel.phases[channel.phases.index(phase) + 1]
            jobs = [
                Job(m.client, number, following, context.crafted.get(m.client), inbox[m.client], m.state)
                for m in messages
                if m.client in inbox
            ]
        return _remembering(self._phase(jobs, engine), state)

    def _phase(self, jobs: list[Job], engine: engines.Engine) -> Iterator[Message]:
        honest = [j for j in jobs if j.client not in self.attackers]
        crooked = [j for j in jobs if j.client in self.attackers]
        if not (self.poisoner and self.poisoner.wants_others and self.defense.channel.plaintext):
            yield from engine.map(take_turn, chain(honest, crooked))
            return
        # An attacker that reads others' updates crafts its own when theirs have come in.
        others: list[Update] = []
        for message in engine.map(take_turn, honest):
            others.append(message.payload)
            yield message
        yield from engine.map(take_turn, (replace(j, others=tuple(others)) for j in crooked))

    def _crafted(self, model: Tensor, clients: tuple[int, ...]) -> dict[int, Tensor]:
        """Models made for single clients; who isn't in it gets the round's like everybody."""
        made = ((c, self.distribution.craft(model, c)) for c in clients)
        return {c: sent for c, sent in made if sent is not model}

    def _remember(
        self, state: ServerState, views: dict[str, RoundView], number: int, public: Public
    ) -> dict[str, View]:
        seen = {name: View(name, public, (*state.views.get(name, ()), view)) for name, view in views.items()}
        if number in self.keep:
            for name, view in views.items():
                state.views.setdefault(name, []).append(view)
        return seen


def _remembering(messages: Iterator[Message], state: ServerState) -> Iterator[Message]:
    """The messages, and what each client keeps for the next round."""
    for message in messages:
        if message.state:
            state.clients[message.client] = message.state
        yield message


def number_of_clients(settings: FederationSettings, task: Classification) -> int:
    """``federation.clients``, else the partition's natural number, else 20."""
    return settings.clients or task.natural_clients or 20


class _Timer:
    """Time spent waiting for an iterator's next element."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def waiting(self, source: Iterator[Message]) -> Iterator[Message]:
        while True:
            start = time.perf_counter()
            message = next(source, None)
            self.seconds += time.perf_counter() - start
            if message is None:
                return
            yield message
