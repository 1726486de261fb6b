"""What runs where a client runs."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from privbench.attacks.inference.canaries import Own, Planted
from privbench.attacks.poisoning.poisoner import Colluders, Holding, Poisoner, Seen
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.server import RoundContext
from privbench.benchmarks.federation.settings import LocalWork
from privbench.benchmarks.federation.spans import span, take
from privbench.benchmarks.federation.trainer import Trainer
from privbench.benchmarks.federation.update import Layout, Update
from privbench.benchmarks.federation.usage import Stopwatch
from privbench.benchmarks.tasks.task import Relabel, Spec, Split, relabelled
from privbench.benchmarks.tasks.triggers import Trigger
from privbench.defenses.accounting.plan import Plan
from privbench.defenses.aggregation.rule import Rule
from privbench.defenses.channel import Message, Session
from privbench.defenses.local import Local
from privbench.defenses.local.per_sample.engine import Loss


@dataclass
class ClientSide:
    """Everything that clients of one process share; workers inherit it.

    Args:
        seed: the run's.
        data: all training records; ``shares[c]`` are client c's, as indices.
        spec, trigger: of the task.
        model, layout, loss, work: what is trained and how.
        local, channel, plan: the client's part of the defense; the channel is at work in this run.
        poisoner: who owns ``attackers``, if anybody.
        weights: each client's weight in the server's step from an expected cohort.
        received: the model of the round, ``(layout.size,)``, in memory that workers share.
        device: where clients train.
        planted: an audit's canaries, if there is one.
        rule: the aggregation rule, for a poisoner that asks for it.
        relabel: how a poisoner gives records other labels.
    """

    seed: int
    data: Split
    shares: list[Tensor]
    spec: Spec
    trigger: Trigger | None
    model: nn.Module
    layout: Layout
    loss: Loss
    work: LocalWork
    local: Local
    channel: Session
    plan: Plan | None
    poisoner: Poisoner | None
    attackers: frozenset[int]
    weights: list[float]
    received: Tensor
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    planted: Planted | None = None
    rule: Rule | None = None
    relabel: Relabel = relabelled
    _trainers: dict[Local, Trainer] = field(default_factory=dict)
    _pooled: dict[tuple[int, int], Update] = field(default_factory=dict)

    def trainer(self, local: Local) -> Trainer:
        """This process's trainer for a mechanism, made at first use."""
        if local not in self._trainers:
            self._trainers[local] = Trainer(self.model, self.layout, self.loss, local, self.device)
        return self._trainers[local]


@dataclass(frozen=True)
class Job:
    """One client's turn in one phase of a round.

    Args:
        client, round, phase, attempt: which.
        model: a model sent to this client alone (an active operator's); ``None`` is the round's.
        inbox: what the channel relayed to it.
        state: what it kept.
        others: updates that its poisoner can read.
        colluders: the poisoner's clients in this round's cohort, for one of them, each with a model as ``model`` is.
        context: of the round, for a poisoner that knows the aggregation rule.
    """

    client: int
    round: int
    phase: str
    model: Tensor | None = None
    inbox: Any = None
    state: dict[str, Any] = field(default_factory=dict)
    others: tuple[Update, ...] = ()
    colluders: Mapping[int, Tensor | None] = field(default_factory=dict)
    context: RoundContext | None = None
    attempt: int = 1


@dataclass(frozen=True)
class Turn:
    """What this client does in this round: the same at every call where noise is seeded."""

    side: ClientSide
    job: Job

    @property
    def poisoner(self) -> Poisoner | None:
        """Who owns this client, in a round that it attacks."""
        side, client = self.side, self.job.client
        return side.poisoner if client in side.attackers and client in self._attackers else None

    @property
    def _attackers(self) -> tuple[int, ...]:
        """The poisoner's clients that attack in this round."""
        side, owner = self.side, self.side.poisoner
        return () if owner is None else owner.schedule.attackers(self.job.round, side.seed, side.attackers)

    @property
    def local(self) -> Local:
        """Its mechanism: who changes the training drops the noise that it should add; who changes data alone can't."""
        return Local() if self.poisoner is not None and self.poisoner.tampers else self.side.local

    @property
    def work(self) -> LocalWork:
        return self.poisoner.work(self.side.work) if self.poisoner is not None else self.side.work

    @property
    def tampers(self) -> Literal["code", "message"] | None:
        """What of its message an attested guest with the agreed code didn't make."""
        return self.poisoner.forges if self.poisoner is not None else None

    def records(self) -> Split:
        """What it trains on."""
        side, client, poisoner = self.side, self.job.client, self.poisoner
        if poisoner is None:
            return self._own()
        number = client - min(side.attackers)
        held = Holding(self._own(), side.spec, side.trigger, number, side.data, side.relabel)
        # The same records in every round: the adversary poisons its data set once.
        return poisoner.poison(held, stream(side.seed, "poison", 0, client))

    def _own(self) -> Split:
        return self.side.data.take(self.side.shares[self.job.client])

    def update(self, received: Tensor) -> Update:
        """What it sends, after its mechanism and its poisoner."""
        side, job, poisoner = self.side, self.job, self.poisoner
        update = self._made(received)
        if poisoner is not None:
            craft = stream(side.seed, "craft", job.round, job.client)
            update = poisoner.craft(update, self._seen(poisoner, update), craft)
        with span("local_mechanism", job.client):
            return self.local.send(update, job.client, side.plan, stream(side.seed, "send", job.round, job.client))

    def _made(self, received: Tensor) -> Update:
        """What its training makes."""
        side, job = self.side, self.job
        own = None if side.planted is None else side.planted.of(job.client)
        if side.planted is not None and side.planted.unit == "client":
            return self._canary(received, own) if own else self._trained(received, self.records(), None)
        return self._trained(received, self.records(), own)

    def _seen(self, poisoner: Poisoner, update: Update) -> Seen:
        side, job = self.side, self.job
        update = replace(update, client=job.client)
        # Who isn't drawn adds no weight; a job that is asked for by itself names nobody.
        attackers = self._attackers
        together = [c for c in job.colluders if c in attackers] or [job.client]
        owned = min(1.0, sum(side.weights[c] for c in together))
        pools = poisoner.pools and poisoner.collude
        known = together if pools else [job.client]
        cohort = 1 if job.context is None else len(job.context.invited)
        knows = side.rule is not None and job.context is not None and "rule" in poisoner.asks
        aggregate = self._aggregate if knows else None
        counted = knows and side.planted is None
        records = {c: len(replace(self, job=replace(job, client=c)).records()) for c in known} if counted else {}
        colluders = Colluders({c: self._pooled(c, update) for c in known}, records)
        return Seen(owned, side.weights[job.client], job.others, colluders, cohort, aggregate)

    def _pooled(self, client: int, update: Update) -> Callable[[], Update]:
        """What another of the poisoner's clients trained in this round; each process trains it once, if at all."""
        side, job, key = self.side, self.job, (self.job.round, client)

        def made() -> Update:
            if client == job.client:
                return update
            if key not in side._pooled:
                for old in [k for k in side._pooled if k[0] != job.round]:
                    del side._pooled[old]
                own = job.colluders[client]
                received = side.received if own is None else own
                trained = Turn(side, replace(job, client=client, model=own))._made(received)
                side._pooled[key] = replace(trained, client=client)
            return side._pooled[key]

        return made

    def _aggregate(self, updates: Sequence[Update]) -> Tensor:
        """What the rule in force makes of updates, without what it remembers of earlier rounds."""
        rule, context = self.side.rule, self.job.context
        assert rule is not None
        assert context is not None
        ordered = sorted(updates, key=lambda u: -1 if u.client is None else u.client)
        return rule.combine(ordered, {}, context).vector

    def _trained(self, received: Tensor, records: Split, canaries: Own | None) -> Update:
        side, job = self.side, self.job
        trainer, poisoner = side.trainer(self.local), self.poisoner
        steering = poisoner.steers() if poisoner is not None else None
        clean = self._own() if steering is not None and steering.looks else None
        work, number = self.work, job.round
        with span("local_training", job.client):
            return trainer.train(
                received,
                records,
                work,
                job.client,
                side.plan,
                side.seed,
                number,
                canaries,
                steering,
                clean,
                job.attempt,
            )

    def _canary(self, received: Tensor, own: Own) -> Update:
        """A canary client's update before its mechanism: nothing where its coin left it out."""
        side, layout = self.side, self.side.layout
        if own.records is not None and bool(own.included[0]):
            return self._trained(received, own.records, None)
        vector = torch.zeros(layout.size)
        if own.records is None:
            clip = 1.0 if side.plan is None else side.plan.clip
            direction = own.direction(torch.arange(len(own)), layout.trainable)
            vector[: layout.trainable] = direction * (own.length * clip)
        return Update(vector, layout, self.work.share, 1)


def take_turn(side: ClientSide, job: Job) -> Message:
    """Hand one client's turn to the channel's client side, which has it trained in one of its phases."""
    watch = Stopwatch()
    # Whatever a phase keeps passes through the coordinator, which must not hold an update that the channel hides.
    turn = Turn(side, job) if job.phase == side.channel.trains else None
    received = side.received if job.model is None else job.model
    with span("client", job.client):
        message = side.channel.client(job.phase, turn, job.client, received, job.inbox, job.state)
    spent, elsewhere = watch.read(), message.usage
    message.seconds = spent.seconds
    memory = None if spent.memory is None else spent.memory + (elsewhere.memory or 0)
    message.usage = replace(spent, cpu_seconds=spent.cpu_seconds + elsewhere.cpu_seconds, memory=memory)
    message.process = (os.getpid(), max(watch.before or 0, spent.memory or 0))
    message.spans = take()
    return message


def compute(side: ClientSide, job: Job) -> Update:
    """The update of this client in this round."""
    return Turn(side, job).update(side.received if job.model is None else job.model)
