"""What runs where a client runs."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from privbench.attacks.poisoning.poisoner import Poisoner
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.settings import LocalWork
from privbench.benchmarks.federation.trainer import Loss, Trainer
from privbench.benchmarks.federation.update import Layout, Update
from privbench.benchmarks.tasks.task import Spec, Split
from privbench.benchmarks.tasks.trigger import Patch
from privbench.defenses.accounting.plan import Plan
from privbench.defenses.channel import Channel, Message
from privbench.defenses.local import Local


@dataclass
class ClientSide:
    """Everything that clients of one process share; workers inherit it.

    Args:
        seed: the run's.
        data: all training records; ``shares[c]`` are client c's, as indices.
        spec, trigger: of the task.
        model, layout, loss, work: what is trained and how.
        local, channel, plan: the client's part of the defense.
        poisoner: who owns ``attackers``, if anybody.
        weights: each client's weight in the server's step from an expected cohort.
        received: the model of the round, ``(layout.size,)``, in memory that workers share.
        device: where clients train.
    """

    seed: int
    data: Split
    shares: list[Tensor]
    spec: Spec
    trigger: Patch | None
    model: nn.Module
    layout: Layout
    loss: Loss
    work: LocalWork
    local: Local
    channel: Channel
    plan: Plan | None
    poisoner: Poisoner | None
    attackers: frozenset[int]
    weights: list[float]
    received: Tensor
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _trainers: dict[Local, Trainer] = field(default_factory=dict)

    def trainer(self, local: Local) -> Trainer:
        """This process's trainer for a mechanism, made at first use."""
        if local not in self._trainers:
            self._trainers[local] = Trainer(self.model, self.layout, self.loss, local, self.device)
        return self._trainers[local]


@dataclass(frozen=True)
class Job:
    """One client's turn in one phase of a round.

    Args:
        client, round, phase: which.
        model: a model sent to this client alone (an active operator's); ``None`` is the round's.
        inbox: what the channel relayed to it.
        state: what it kept.
        update: its update from the first phase, in later ones.
        others: updates that its poisoner can read.
    """

    client: int
    round: int
    phase: str
    model: Tensor | None = None
    inbox: Any = None
    state: dict[str, Any] = field(default_factory=dict)
    update: Update | None = None
    others: tuple[Update, ...] = ()


def take_turn(side: ClientSide, job: Job) -> Message:
    """Train (in the first phase), protect, and hand the update to the channel's client side."""
    start = time.perf_counter()
    update = job.update if job.update is not None else _compute(side, job)
    message = side.channel.client(job.phase, update, job.client, job.inbox, job.state)
    if len(side.channel.phases) > 1:
        message.state["update"] = update
    message.seconds = time.perf_counter() - start
    return message


def _compute(side: ClientSide, job: Job) -> Update:
    received = side.received if job.model is None else job.model
    records = side.data.take(side.shares[job.client])
    poisoner = side.poisoner if job.client in side.attackers else None
    local = side.local
    if poisoner is not None:
        # The same records in every round: the adversary poisons its data set once.
        records = poisoner.poison(records, side.spec, side.trigger, stream(side.seed, "poison", 0, job.client))
        # Whoever changes the training code drops the noise that it should add; whoever only changes data can't.
        local = Local() if poisoner.tampers else local
    update = side.trainer(local).train(received, records, side.work, job.client, side.plan, side.seed, job.round)
    if poisoner is not None:
        craft = stream(side.seed, "craft", job.round, job.client)
        share = min(1.0, sum(side.weights[c] for c in side.attackers))
        update = poisoner.craft(update, job.others, share, craft)
    return local.send(update, job.client, side.plan, stream(side.seed, "send", job.round, job.client))
