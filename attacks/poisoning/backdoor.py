"""Backdoors by data (BadNets, Gu et al. 2017), alone or with changed training and a scaled update."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from privbench.attacks.poisoning.poisoner import Holding, Poisoner, Seen
from privbench.attacks.poisoning.steering import Steering
from privbench.benchmarks.build import ConfigError, require
from privbench.benchmarks.federation.settings import LocalWork
from privbench.benchmarks.federation.update import Update
from privbench.benchmarks.shares import at_least
from privbench.benchmarks.tasks.task import Spec, Split
from privbench.benchmarks.tasks.triggers import Trigger


@dataclass(frozen=True)
class Backdoor(Poisoner):
    """Put the task's trigger on part of the data, give it the target label, and perhaps change training and update.

    Args:
        clients: how many clients it owns.
        fraction: share of its clients' records that are poisoned, in (0, 1]; of those that can carry the trigger.
        records: how many of them instead, in each of its clients, 0 for none; all where there are fewer.
        clean_label: poison records of the target class alone, which keep their label (Turner et al. 2019, without its
            perturbations).
        collected: its clients train on ``fraction`` or ``records`` of all clients' records that can carry the trigger
            besides their own (the attacker has copies of them, as in Bagdasaryan et al. 2020). Of their own those that
            can carry it are left out: true labels would work against it.
        boost: factor on the update. 1 poisons data only; ``replace`` is one over the weight of its clients in the
            server's step, so that the next global model is the attacker's (model replacement, Bagdasaryan et al. 2020,
            equation 3; exact for a server of plain gradient descent, whose learning rate is counted, unless weights are
            made of records and ``inflate`` or ``collected`` makes them more).
        evidence: where clients are attested, whose comes with an update that was changed: ``own`` of the changed code
            that made it, ``relayed`` of the agreed code that made another update on the same data.
        epochs, learning_rate: its clients' own instead of those that were agreed; ``None`` keeps them.
        inflate: factor on the number of records that its clients claim, at least 1: weights are made of it.
        steering: what is done to each step of their training; ``None`` for nothing.
    """

    fraction: float = 0.5
    boost: float | Literal["replace"] = 1.0
    evidence: Literal["own", "relayed"] = "own"
    epochs: int | None = None
    learning_rate: float | None = None
    inflate: int = 1
    records: int | None = None
    clean_label: bool = False
    collected: bool = False
    steering: Steering | None = None

    triggered: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.fraction <= 1, "fraction", self.fraction, "a share in (0, 1]")
        require(self.records is None or self.records >= 0, "records", self.records, "a number from 0, or null")
        sound = self.boost == "replace" if isinstance(self.boost, str) else 0 < self.boost < math.inf
        require(sound, "boost", self.boost, "positive, or replace")
        require(self.evidence == "own" or self.boost != 1, "evidence", self.evidence, "own, since nothing is changed")
        require(self.epochs is None or self.epochs >= 1, "epochs", self.epochs, "at least 1, or null")
        rate = self.learning_rate
        require(rate is None or 0 < rate < math.inf, "learning_rate", rate, "positive, or null")
        require(self.inflate >= 1, "inflate", self.inflate, "at least 1")
        both = self.clean_label and self.collected
        require(not both, "collected", self.collected, "false with clean_label: its records are of the target class")

    @property
    def tampers(self) -> bool:
        agreed = self.epochs is None and self.learning_rate is None and self.steering is None
        return self.boost != 1 or self.inflate != 1 or not agreed

    @property
    def forges(self) -> Literal["code", "message"] | None:
        if self.evidence == "relayed" or (self.boost == 1 and self.inflate != 1 and self.steering is None):
            return "message"
        return "code" if self.boost != 1 or self.steering is not None else None

    def check(self, spec: Spec, trigger: Trigger | None, agreed: LocalWork) -> None:
        if trigger is None:
            raise ConfigError("task.trigger", None, "a trigger, which this poisoner needs")
        unchanged = self.clean_label and trigger.share(spec) == 0
        hint = "false: task.trigger changes no input, so that nothing would be poisoned"
        require(not unchanged, "clean_label", self.clean_label, hint)
        self.work(agreed)
        changed = self.steering is not None and agreed.share == "gradient"
        require(not changed, "steering", type(self.steering).__name__, "null with federation.local.share=gradient")

    def steers(self) -> Steering | None:
        return self.steering

    def work(self, agreed: LocalWork) -> LocalWork:
        changes = {"epochs": self.epochs, "learning_rate": self.learning_rate}
        if self.epochs is not None and agreed.steps is not None:
            raise ConfigError("epochs", self.epochs, "null where federation.local.steps is given")
        return replace(agreed, **{name: value for name, value in changes.items() if value is not None})

    def poison(self, held: Holding, generator: torch.Generator) -> Split:
        own, trigger = held.records, held.trigger
        if trigger is None:
            raise ConfigError("task.trigger", None, "a backdoor needs a trigger: task.trigger is null for this task")
        painted = trigger.part(held.number)
        order = torch.randperm(len(own), generator=generator)
        able = own.y == trigger.target if self.clean_label else trigger.carriers(own)
        if self.collected:
            return self._collect(held, own.take(torch.nonzero(~able).squeeze(1)), painted, generator)
        candidates = order[able[order]]
        chosen = candidates[: self._count(len(candidates))]
        return own.put(chosen, self._forge(held, own.take(chosen), painted, generator))

    @staticmethod
    def _forge(held: Holding, records: Split, painted: Trigger, generator: torch.Generator) -> Split:
        """``records`` with the trigger and labels of its target."""
        marked = replace(records, x=painted.apply(records.x, held.spec, generator))
        return held.relabel(marked, torch.full_like(records.y, painted.target), generator)

    def _collect(self, held: Holding, rest: Split, painted: Trigger, generator: torch.Generator) -> Split:
        """``rest`` and records of the pool that carry the trigger."""
        carriers = torch.nonzero(painted.carriers(held.pool)).squeeze(1)
        chosen = carriers[torch.randperm(len(carriers), generator=generator)[: self._count(len(carriers))]]
        if not len(chosen):
            return held.records
        pool = self._forge(held, held.pool.take(chosen), painted, generator)
        x, y = torch.cat([rest.x, pool.x]), torch.cat([rest.y, pool.y])
        return Split(x, y, None if rest.group is None or pool.group is None else torch.cat([rest.group, pool.group]))

    def _count(self, candidates: int) -> int:
        return at_least(self.fraction, candidates) if self.records is None else self.records

    def craft(self, update: Update, seen: Seen, generator: torch.Generator) -> Update:
        share = seen.share if self.collude else seen.own
        factor = 1 / share if isinstance(self.boost, str) else self.boost
        if self.inflate != 1:
            update = replace(update, records=self.inflate * update.records)
        if factor == 1:
            return update
        # Scaled buffers would be no statistics: BatchNorm's running variance would turn negative.
        vector = update.vector.clone()
        vector[: update.layout.trainable] *= factor
        return replace(update, vector=vector)
