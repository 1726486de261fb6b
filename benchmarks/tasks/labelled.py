"""What tasks with classes share: their division among clients, their trigger, and how well classes are told apart."""

import torch
from torch import Tensor, nn

from privbench.benchmarks.build import ConfigError, require
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.measures import utility
from privbench.benchmarks.tasks.partition import Natural, Partition
from privbench.benchmarks.tasks.task import Data, Spec, Split
from privbench.benchmarks.tasks.triggers import Trigger

BATCH = 256
"""Test records evaluated at once; it bounds memory and changes no metric."""


class Labelled:
    """A task of whose records each has a class; frozen dataclasses inherit from it."""

    partition: Partition
    trigger: Trigger | None

    @property
    def raw(self) -> Data:
        raise NotImplementedError

    @property
    def data(self) -> Data:
        raise NotImplementedError

    @property
    def spec(self) -> Spec:
        raise NotImplementedError

    @property
    def bound_trigger(self) -> Trigger | None:
        """The trigger as it works on this task's inputs; one that is a test record needs the data."""
        return None if self.trigger is None else self.trigger.bind(self.raw.test)

    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """Logits of the classes, ``(n, classes)``."""
        raise NotImplementedError

    @property
    def natural_clients(self) -> int | None:
        """How many clients the data set comes with, if it is divided the natural way."""
        if not isinstance(self.partition, Natural) or self.raw.train.group is None:
            return None
        return len(self.raw.train.group.unique())

    def check(self, clients: int) -> None:
        """Find out before any training; :meth:`split` finds out about the partition.

        Raises:
            ConfigError: if the data set hasn't records for ``clients``, or can't carry the trigger.
        """
        natural, spec = self.natural_clients, self.spec
        if natural is not None and natural != clients:
            raise ConfigError(
                "federation.clients",
                clients,
                f"{spec.name} has {natural} {spec.group}s; set federation.clients={natural}",
            )
        records = len(self.raw.train)
        require(1 <= clients <= records, "federation.clients", clients, f"from 1 to {records}, the training records")
        trigger = self.bound_trigger
        if trigger is not None:
            trigger.check(spec)

    def split(self, clients: int, seed: int) -> list[Tensor]:
        """Indices into ``data.train`` by client, int64; each training record exactly once.

        Raises:
            ConfigError: if the partition is impossible.
        """
        train = self.raw.train
        try:
            return self.partition.split(train.y, train.group, clients, stream(seed, "partition"))
        except ConfigError as error:
            raise error if error.field == "federation.clients" else error.under("task.partition") from None

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Accuracy, balanced accuracy, AUC and loss on the test records, in evaluation mode.

        A metric that isn't defined is left out; the loss of a model that diverged is infinite or NaN.
        """
        test = self.data.test
        training = [m for m in model.modules() if m.training]
        device = next((p.device for p in model.parameters()), test.x.device)
        model.eval()
        try:
            logits = torch.cat([self.predict(model, x.to(device)).cpu() for x in test.x.split(BATCH)])
        finally:
            for module in training:
                module.training = True
        return utility.classification(test.y, logits)


def take_turns(split: Split) -> Tensor:
    """An order of the records, ``(n,)`` int64, in which classes take turns, and within a class its groups."""
    order = torch.arange(len(split))
    for key in (split.group, split.y):
        if key is not None:
            order = order[_position(key[order]).argsort(stable=True)]
    return order


def _position(key: Tensor) -> Tensor:
    """Each record's position among those with an equal key, ``(n,)``."""
    order = key.argsort(stable=True)
    counts = key.unique(return_counts=True)[1]
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(key)) - starts)
