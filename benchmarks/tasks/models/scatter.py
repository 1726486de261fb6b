"""Small models on scattering coefficients (Tramer and Boneh 2021, for MNIST and Fashion-MNIST)."""

from dataclasses import dataclass
from math import prod

from torch import nn

from privbench.benchmarks.build import require
from privbench.benchmarks.tasks.models.architecture import expect
from privbench.benchmarks.tasks.task import Spec


@dataclass(frozen=True)
class ScatterLinear:
    """One linear layer on group-normalised coefficients.

    The normalisation has no weights and mixes no records: it costs no privacy, where the statistics of the paper's
    other way, frozen batch normalisation, have to be noised.

    Args:
        groups: of consecutive channels, each brought to mean 0 and deviation 1 in every record; the paper has 27.
    """

    groups: int = 27

    def __post_init__(self) -> None:
        require(self.groups >= 1, "groups", self.groups, "at least 1")

    def build(self, spec: Spec) -> nn.Module:
        expect(self, spec, "feature map")
        linear = nn.Linear(prod(spec.shape), len(spec.classes))
        return nn.Sequential(_normalisation(self.groups, spec), nn.Flatten(), linear)


@dataclass(frozen=True)
class ScatterCNN:
    """Two 3x3 convolutions, the first of stride 2, and two linear layers, with tanh.

    Args:
        width: channels of the first convolution; the second has twice as many.
        hidden: width of the hidden linear layer.
        groups: as :class:`ScatterLinear` has them.
    """

    width: int = 16
    hidden: int = 32
    groups: int = 27

    def __post_init__(self) -> None:
        require(self.width >= 1, "width", self.width, "at least 1")
        require(self.hidden >= 1, "hidden", self.hidden, "at least 1")
        require(self.groups >= 1, "groups", self.groups, "at least 1")

    def build(self, spec: Spec) -> nn.Module:
        expect(self, spec, "feature map")
        channels, height, width = spec.shape
        places = ((height + 1) // 2) * ((width + 1) // 2)
        return nn.Sequential(
            _normalisation(self.groups, spec),
            nn.Conv2d(channels, self.width, 3, stride=2, padding=1),
            nn.Tanh(),
            nn.Conv2d(self.width, 2 * self.width, 3, padding=1),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(2 * self.width * places, self.hidden),
            nn.Tanh(),
            nn.Linear(self.hidden, len(spec.classes)),
        )


def _normalisation(groups: int, spec: Spec) -> nn.Module:
    channels = spec.shape[0]
    require(channels % groups == 0, "model.groups", groups, f"a divisor of {channels}, the channels of {spec.name}")
    return nn.GroupNorm(groups, channels, affine=False)
