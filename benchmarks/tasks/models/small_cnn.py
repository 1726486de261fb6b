"""A small convolutional network for small images."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from privbench.benchmarks.build import require
from privbench.benchmarks.tasks.models.architecture import expect
from privbench.benchmarks.tasks.task import Spec


@dataclass(frozen=True)
class SmallCNN:
    """Two 5x5 convolutions, each with an activation and 2x2 max-pooling, then two linear layers.

    It has the form of McMahan et al. 2017's CNN (section 3), at half its width and less; 63,786 parameters on MNIST.

    Args:
        width: channels of the first convolution; the second has twice as many.
        hidden: width of the hidden linear layer.
        activation: tanh does better under DP-SGD (Papernot et al. 2021).
    """

    width: int = 16
    hidden: int = 32
    activation: Literal["relu", "tanh"] = "relu"

    def __post_init__(self) -> None:
        require(self.width >= 1, "width", self.width, "at least 1")
        require(self.hidden >= 1, "hidden", self.hidden, "at least 1")

    def build(self, spec: Spec) -> nn.Module:
        expect(self, spec, "image", smallest=4)
        act = nn.ReLU if self.activation == "relu" else nn.Tanh
        channels, height, width = spec.shape
        flat = 2 * self.width * (height // 4) * (width // 4)
        return nn.Sequential(
            nn.Conv2d(channels, self.width, 5, padding=2),
            act(),
            nn.MaxPool2d(2),
            nn.Conv2d(self.width, 2 * self.width, 5, padding=2),
            act(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(flat, self.hidden),
            act(),
            nn.Linear(self.hidden, len(spec.classes)),
        )
