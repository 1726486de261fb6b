"""What a task is made of: records, what is known about them, and where they come from."""

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

Domain = Literal["image", "signal", "table", "feature map"]


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


@dataclass(frozen=True)
class Spec:
    """What is public about a data set.

    Args:
        name: of the data set, as in ``conf/task``.
        shape: of one input: ``(channels, height, width)`` (also of a feature map), ``(channels, samples)`` or
            ``(features,)``.
        classes: class names; label ``i`` is ``classes[i]``.
        mean, std: standardisation, broadcastable to ``shape``: ``raw = x * std + mean``; raw pixels are in [0, 1].
        domain: what an input is; a feature map is what was computed of an image.
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

    def apply(self, data: Data) -> Data:
        """The same records, in the same order, with other inputs, each computed of its own record alone.

        Raises:
            ConfigError: if they can't be computed of such inputs.
        """
        ...
