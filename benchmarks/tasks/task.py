"""What a task is, and what it is made of: records, what is known about them, and where they come from."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from privbench.benchmarks.tasks.partition import Partition
    from privbench.benchmarks.tasks.triggers import Trigger

Domain = Literal["image", "signal", "table", "feature map", "pair"]


@dataclass(frozen=True)
class Split:
    """Records.

    Args:
        x: inputs, ``(n, *shape)``, float32, standardised.
        y: labels, ``(n,)``, int64.
        group: what the record belongs to (hospital, patient), ``(n,)`` int64, or ``None``.
    """

    x: Tensor
    y: Tensor
    group: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: Tensor) -> "Split":
        """The records at ``index`` (``(m,)`` int64), copied."""
        return Split(self.x[index], self.y[index], None if self.group is None else self.group[index])

    def put(self, index: Tensor, records: "Split") -> "Split":
        """A copy in which inputs and labels at ``index`` are those of ``records``; groups stay."""
        x, y = self.x.clone(), self.y.clone()
        x[index], y[index] = records.x, records.y
        return Split(x, y, self.group)


@dataclass(frozen=True)
class Spec:
    """What is public about a data set.

    Args:
        name: of the data set, as in ``conf/task``.
        shape: of one input: ``(channels, height, width)`` (also of a feature map), ``(channels, samples)`` or
            ``(features,)``.
        classes: class names; label ``i`` is ``classes[i]``.
        mean, std: standardisation, broadcastable to ``shape``: ``raw = x * std + mean``; raw pixels are in [0, 1].
        domain: what an input is; a feature map is what was computed of an image, a pair an image and its caption.
        group: what ``Split.group`` numbers, in the singular (``"hospital"``), or ``None``.
        features: names of a table's features, ``shape[0]`` of them, or none.
    """

    name: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    mean: Tensor
    std: Tensor
    domain: Domain
    group: str | None = None
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class Data:
    """A loaded data set; ``test`` is standardised with the statistics of ``train``."""

    train: Split
    test: Split
    spec: Spec


class Source(Protocol):
    """A data set. Sources are frozen dataclasses: equal ones are loaded once per process."""

    def load(self, data_dir: str | None) -> Data:
        """Read the data set.

        Args:
            data_dir: a folder to look in before ``PRIVBENCH_DATA`` and the user's cache.

        Raises:
            DataMissing: if a file is nowhere, and can't be fetched.
            ConfigError: if a file isn't the one that was published.
        """
        ...


class Features(Protocol):
    """What is computed of the records once, when they are loaded. Frozen dataclasses, as sources are."""

    def spec(self, spec: Spec) -> Spec:
        """What is public about the features of a data set with ``spec``; it takes no time.

        Raises:
            ConfigError: if they can't be computed of such inputs.
        """
        ...

    def apply(self, data: Data) -> Data:
        """The same records, in the same order, with other inputs, each computed of its own record alone.

        Raises:
            ConfigError: if they can't be computed of such inputs.
        """
        ...


Relabel = Callable[[Split, Tensor, torch.Generator], Split]
"""How records get other labels, ``(n,)`` int64, with a generator of whatever is drawn for it."""


def relabelled(records: Split, labels: Tensor, generator: torch.Generator) -> Split:
    """The same inputs with other labels, as classifiers learn them. It draws nothing."""
    return replace(records, y=labels)


class Task(Protocol):
    """What the training loop, runs and measures use of a task; they name no loss."""

    separable: ClassVar[bool]
    """The batch's loss is the mean of the records' losses, so that gradients of single records exist (DP-SGD)."""

    @property
    def partition(self) -> "Partition":
        """How training records are divided among clients."""
        ...

    @property
    def trigger(self) -> "Trigger | None":
        """What a backdoor is triggered by, as configured."""
        ...

    @property
    def bound_trigger(self) -> "Trigger | None":
        """The trigger as it works on this task's inputs; it may need the data."""
        ...

    @property
    def raw(self) -> Data:
        """The data set before anything slow is computed of it."""
        ...

    @property
    def data(self) -> Data:
        """The data set as models see it."""
        ...

    @property
    def spec(self) -> Spec:
        """What is public about the data set as models see it."""
        ...

    @property
    def natural_clients(self) -> int | None:
        """How many clients the data set comes with, if it is divided the natural way."""
        ...

    def check(self, clients: int) -> None:
        """Find out before any training whether ``clients`` can have this task.

        Raises:
            ConfigError: if they can't.
        """
        ...

    def split(self, clients: int, seed: int) -> list[Tensor]:
        """Indices into ``data.train`` by client, int64."""
        ...

    @property
    def loss(self) -> Callable[[Any, tuple[Tensor, Tensor]], Tensor]:
        """Of a model and a batch ``(x, y)``; static, so that handing it on hands on no data."""
        ...

    @property
    def relabel(self) -> Relabel:
        """How a poisoner gives records other labels; whatever of the data it needs for that is public."""
        ...

    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """Logits of the classes, ``(n, classes)``, of inputs ``(n, *shape)`` on the model's device."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Utility on the test records, in evaluation mode; accuracy among it."""
        ...
