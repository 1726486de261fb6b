"""Classification: cross entropy on a data set that is divided among clients."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privbench.benchmarks.build import RUNTIME, ConfigError, require
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.measures import utility
from privbench.benchmarks.tasks.partition import IID, Natural, Partition
from privbench.benchmarks.tasks.task import Data, Features, Source, Spec, Split
from privbench.benchmarks.tasks.triggers import Patch, Trigger

BATCH = 256
"""Test records evaluated at once; it bounds memory and changes no metric."""


@dataclass(frozen=True)
class Classification:
    """A task.

    Args:
        source: the data set.
        partition: how its training records are divided among clients.
        trigger: what a backdoor is triggered by; the false-trigger rate of a clean model needs it as well.
        records: use only the first so many training records, classes (and groups) taking turns.
        features: what models see in place of the records: a fixed transform; ``None`` for the records themselves.
        data_dir: where to look for files first.
    """

    source: Source
    partition: Partition = field(default=IID())
    trigger: Trigger | None = field(default=Patch())
    records: int | None = None
    features: Features | None = None
    data_dir: str | None = field(default=None, metadata=RUNTIME)

    separable: ClassVar[bool] = True
    """The batch's loss is the mean of the records' losses, so that gradients of single records exist (DP-SGD)."""

    def __post_init__(self) -> None:
        require(self.records is None or self.records > 0, "records", self.records, "at least 1, or null for all")

    @property
    def raw(self) -> Data:
        """The data set without features, loaded once per process: whoever needs no inputs needn't wait for features."""
        return _load(self.source, self.records, self.data_dir)

    @property
    def data(self) -> Data:
        """The data set as models see it; features are computed once per process, when first asked for."""
        if self.features is None:
            return self.raw
        return _featured(self.source, self.records, self.data_dir, self.features)

    @property
    def spec(self) -> Spec:
        """What is public about the data set as models see it."""
        return self.raw.spec if self.features is None else self.features.spec(self.raw.spec)

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
        if self.trigger is not None:
            self.trigger.check(spec)

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

    @staticmethod
    def loss(model: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross entropy (nats) of ``batch = (x, y)``. Static, so that handing it on hands on no data."""
        x, y = batch
        return F.cross_entropy(model(x), y)

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
            logits = torch.cat([model(x.to(device)).cpu() for x in test.x.split(BATCH)])
        finally:
            for module in training:
                module.training = True
        return utility.classification(test.y, logits)


@lru_cache(maxsize=2)
def _load(source: Source, records: int | None, data_dir: str | None) -> Data:
    data = source.load(data_dir)
    if records is None:
        return data
    require(records <= len(data.train), "task.records", records, f"at most {len(data.train)}")
    return Data(data.train.take(take_turns(data.train)[:records]), data.test, data.spec)


@lru_cache(maxsize=1)
def _featured(source: Source, records: int | None, data_dir: str | None, features: Features) -> Data:
    return features.apply(_load(source, records, data_dir))


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
