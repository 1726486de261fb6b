"""Backdoors by data (BadNets, Gu et al. 2017), alone or with model replacement (Bagdasaryan et al. 2020)."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch

from privbench.attacks.poisoning.poisoner import Poisoner
from privbench.benchmarks.build import ConfigError, require
from privbench.benchmarks.federation.settings import LocalWork
from privbench.benchmarks.federation.update import Update
from privbench.benchmarks.tasks.task import Spec, Split
from privbench.benchmarks.tasks.trigger import Patch


@dataclass(frozen=True)
class Backdoor(Poisoner):
    """Paint the task's trigger on part of the data, give it the target label, and perhaps scale the update.

    Args:
        clients: how many clients it owns.
        fraction: share of its clients' records that are poisoned, in (0, 1]; of the classes other than the target.
        boost: factor on the update. 1 poisons data only; ``replace`` is one over the weight of its clients in the
            server's step, so that the next global model is the attacker's (model replacement, Bagdasaryan et al. 2020,
            equation 3; exact for a server of plain gradient descent, whose learning rate is counted).
        evidence: where clients are attested, whose comes with an update that was changed: ``own`` of the changed code
            that made it, ``relayed`` of the agreed code that made another update on the same data.
        epochs, learning_rate: its clients' own instead of those that were agreed; ``None`` keeps them.
        inflate: factor on the number of records that its clients claim, at least 1: weights are made of it.
    """

    fraction: float = 0.5
    boost: float | Literal["replace"] = 1.0
    evidence: Literal["own", "relayed"] = "own"
    epochs: int | None = None
    learning_rate: float | None = None
    inflate: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.fraction <= 1, "fraction", self.fraction, "a share in (0, 1]")
        sound = self.boost == "replace" if isinstance(self.boost, str) else 0 < self.boost < math.inf
        require(sound, "boost", self.boost, "positive, or replace")
        require(self.evidence == "own" or self.boost != 1, "evidence", self.evidence, "own, since nothing is changed")
        require(self.epochs is None or self.epochs >= 1, "epochs", self.epochs, "at least 1, or null")
        rate = self.learning_rate
        require(rate is None or 0 < rate < math.inf, "learning_rate", rate, "positive, or null")
        require(self.inflate >= 1, "inflate", self.inflate, "at least 1")

    @property
    def tampers(self) -> bool:
        return self.boost != 1 or self.inflate != 1 or self.epochs is not None or self.learning_rate is not None

    @property
    def forges(self) -> Literal["code", "message"] | None:
        if self.evidence == "relayed" or (self.boost == 1 and self.inflate != 1):
            return "message"
        return "code" if self.boost != 1 else None

    def work(self, agreed: LocalWork) -> LocalWork:
        changes = {"epochs": self.epochs, "learning_rate": self.learning_rate}
        if self.epochs is not None and agreed.steps is not None:
            raise ConfigError("epochs", self.epochs, "null where federation.local.steps is given")
        return replace(agreed, **{name: value for name, value in changes.items() if value is not None})

    def poison(self, records: Split, spec: Spec, trigger: Patch | None, generator: torch.Generator) -> Split:
        if trigger is None:
            raise ConfigError("task.trigger", None, "a backdoor needs a trigger: task.trigger is null for this task")
        order = torch.randperm(len(records), generator=generator)
        other = order[records.y[order] != trigger.target]
        # 0.07 * 100 is 7.000000000000001
        chosen = other[: math.ceil(self.fraction * len(other) - 1e-9)]
        x, y = records.x.clone(), records.y.clone()
        x[chosen], y[chosen] = trigger.apply(records.x[chosen], spec), trigger.target
        return Split(x, y, records.group)

    def craft(self, update: Update, others: tuple[Update, ...], share: float, generator: torch.Generator) -> Update:
        factor = 1 / share if isinstance(self.boost, str) else self.boost
        if self.inflate != 1:
            update = replace(update, records=self.inflate * update.records)
        if factor == 1:
            return update
        # Scaled buffers would be no statistics: BatchNorm's running variance would turn negative.
        vector = update.vector.clone()
        vector[: update.layout.trainable] *= factor
        return replace(update, vector=vector)
