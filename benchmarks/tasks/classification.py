"""Classification: cross entropy on a data set that is divided among clients."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

from torch import Generator, Tensor, nn
from torch.nn import functional as F

from privbench.benchmarks.build import RUNTIME, require
from privbench.benchmarks.tasks.labelled import Labelled, take_turns
from privbench.benchmarks.tasks.partition import IID, Partition
from privbench.benchmarks.tasks.task import Data, Features, Source, Spec, Split, relabelled
from privbench.benchmarks.tasks.triggers import Patch, Trigger


@dataclass(frozen=True)
class Classification(Labelled):
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

    @staticmethod
    def loss(model: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross entropy (nats) of ``batch = (x, y)``. Static, so that handing it on hands on no data."""
        x, y = batch
        return F.cross_entropy(model(x), y)

    @staticmethod
    def relabel(records: Split, labels: Tensor, generator: Generator) -> Split:
        """The same inputs with other labels."""
        return relabelled(records, labels, generator)

    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """What the model says, ``(n, classes)``."""
        return model(x)


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
