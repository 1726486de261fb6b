"""From raw arrays to standardised tensors."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from privbench.benchmarks.tasks.task import Data, Domain, Spec, Split

CHUNK = 4096
"""Records turned to float64 at once while statistics are summed."""


@dataclass(frozen=True)
class Raw:
    """Records as a file has them.

    Args:
        x: ``(n, *shape)``, any numeric type.
        y: labels, ``(n,)``.
        group: ``(n,)``, or ``None``.
    """

    x: np.ndarray
    y: np.ndarray
    group: np.ndarray | None = None

    def take(self, chosen: np.ndarray) -> "Raw":
        """The records that a mask or index picks."""
        return Raw(self.x[chosen], self.y[chosen], None if self.group is None else self.group[chosen])


def standardise(
    name: str,
    domain: Domain,
    classes: tuple[str, ...],
    train: Raw,
    test: Raw,
    scale: float = 1.0,
    group: str | None = None,
    features: tuple[str, ...] = (),
) -> Data:
    """Subtract the mean and divide by the standard deviation of the training records.

    Images and signals have one mean and one deviation a channel, tables one a feature; a constant is divided by 1.

    Args:
        name, domain, classes, group, features: as in :class:`Spec`.
        train, test: raw records.
        scale: divides ``x`` first, so that raw pixels are in [0, 1].
    """
    mean, std = _statistics(train.x, scale)
    spec = Spec(name, train.x.shape[1:], classes, mean, std, domain, group, features)
    return Data(_split(train, spec, scale), _split(test, spec, scale), spec)


def _statistics(x: np.ndarray, scale: float) -> tuple[Tensor, Tensor]:
    """Mean and deviation over all but axis 1 (channel or feature), in a shape that broadcasts to one record."""
    # Float64 sums in a fixed order: no result depends on the number of threads.
    over = (0, *range(2, x.ndim))
    total = squares = np.zeros(x.shape[1])
    for start in range(0, len(x), CHUNK):
        part = x[start : start + CHUNK].astype(np.float64) / scale
        total, squares = total + part.sum(over), squares + (part**2).sum(over)
    count = x.size / x.shape[1]
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    std[std < 1e-7] = 1.0
    shape = (-1, *(1 for _ in x.shape[2:]))
    return torch.tensor(mean, dtype=torch.float32).reshape(shape), torch.tensor(std, dtype=torch.float32).reshape(shape)


def _split(raw: Raw, spec: Spec, scale: float) -> Split:
    x = torch.from_numpy(np.array(raw.x, dtype=np.float32, order="C"))
    x = x.div_(scale).sub_(spec.mean).div_(spec.std)
    group = None if raw.group is None else torch.from_numpy(raw.group.astype(np.int64))
    return Split(x, torch.from_numpy(raw.y.astype(np.int64)), group)


def every(k: int, strata: np.ndarray) -> np.ndarray:
    """A mask of every ``k``-th record of each stratum, in file order: a stratified split without a seed."""
    mask = np.zeros(len(strata), dtype=bool)
    for stratum in np.unique(strata):
        mask[np.flatnonzero(strata == stratum)[k - 1 :: k]] = True
    return mask
