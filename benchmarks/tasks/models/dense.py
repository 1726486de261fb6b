"""Models that see an input as a vector."""

from dataclasses import dataclass
from itertools import pairwise
from math import prod

from torch import nn

from privbench.benchmarks.build import require
from privbench.benchmarks.tasks.task import Spec


@dataclass(frozen=True)
class LogisticRegression:
    """One linear layer on the flattened input; takes every domain."""

    def build(self, spec: Spec) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(prod(spec.shape), len(spec.classes)))


@dataclass(frozen=True)
class MLP:
    """Linear layers with ReLU on the flattened input; takes every domain.

    Args:
        hidden: widths of the hidden layers.
    """

    hidden: tuple[int, ...] = (64,)

    def __post_init__(self) -> None:
        require(
            len(self.hidden) > 0 and min(self.hidden) > 0, "hidden", self.hidden, "at least one width, each at least 1"
        )

    def build(self, spec: Spec) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise((prod(spec.shape), *self.hidden)):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(self.hidden[-1], len(spec.classes)))
