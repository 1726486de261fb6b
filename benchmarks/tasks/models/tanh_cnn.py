"""The convolutional networks of the literature on DP-SGD."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from privbench.benchmarks.build import require
from privbench.benchmarks.tasks.models.architecture import expect
from privbench.benchmarks.tasks.models.norm import Norm, norm2d
from privbench.benchmarks.tasks.models.standardised import standardise
from privbench.benchmarks.tasks.task import Spec


@dataclass(frozen=True)
class TanhCNN:
    """An 8x8 and a 4x4 convolution of stride 2, each with 2x2 max-pooling of stride 1, and two linear layers.

    Papernot et al. 2021, Table 1, for MNIST, which is also Opacus' MNIST example: 26,010 parameters there.

    Args:
        width: channels of the first convolution; the second has twice as many.
        hidden: width of the hidden linear layer.
        activation: bounded activations do better under DP-SGD, as the paper finds.
        norm: after each convolution.
        weight_standardisation: of the convolutions, as De et al. 2022 have it with a group norm.
    """

    width: int = 16
    hidden: int = 32
    activation: Literal["tanh", "relu"] = "tanh"
    norm: Norm = "none"
    weight_standardisation: bool = False

    def __post_init__(self) -> None:
        require(self.width >= 1, "width", self.width, "at least 1")
        require(self.hidden >= 1, "hidden", self.hidden, "at least 1")
        hint = "false, or norm=group: nothing else gives a standardised convolution its scale"
        require(self.norm != "none" or not self.weight_standardisation, "weight_standardisation", True, hint)

    def build(self, spec: Spec) -> nn.Module:
        expect(self, spec, "image", smallest=14)
        act = nn.ReLU if self.activation == "relu" else nn.Tanh
        channels, *edges = spec.shape
        height, width = (((e + 6 - 8) // 2 + 1 - 1 - 4) // 2 + 1 - 1 for e in edges)
        model = nn.Sequential(
            nn.Conv2d(channels, self.width, 8, stride=2, padding=3),
            norm2d(self.norm, self.width),
            act(),
            nn.MaxPool2d(2, stride=1),
            nn.Conv2d(self.width, 2 * self.width, 4, stride=2),
            norm2d(self.norm, 2 * self.width),
            act(),
            nn.MaxPool2d(2, stride=1),
            nn.Flatten(),
            nn.Linear(2 * self.width * height * width, self.hidden),
            act(),
            nn.Linear(self.hidden, len(spec.classes)),
        )
        return standardise(model) if self.weight_standardisation else model
