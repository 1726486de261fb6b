"""A convolutional network for one-dimensional signals."""

from dataclasses import dataclass

from torch import nn

from privbench.benchmarks.build import require
from privbench.benchmarks.tasks.models.architecture import expect
from privbench.benchmarks.tasks.task import Spec


@dataclass(frozen=True)
class SignalCNN:
    """Three convolutions over time (7, 5, 5 samples) with ReLU and pooling by 2, then two linear layers.

    Args:
        width: channels of the first convolution; the others have twice as many.
        hidden: width of the hidden linear layer.
    """

    width: int = 16
    hidden: int = 32

    def __post_init__(self) -> None:
        require(self.width >= 1, "width", self.width, "at least 1")
        require(self.hidden >= 1, "hidden", self.hidden, "at least 1")

    def build(self, spec: Spec) -> nn.Module:
        expect(self, spec, "signal", smallest=8)
        layers: list[nn.Module] = []
        channels, length = spec.shape
        for after, kernel in ((self.width, 7), (2 * self.width, 5), (2 * self.width, 5)):
            layers += [nn.Conv1d(channels, after, kernel, padding=kernel // 2), nn.ReLU(), nn.MaxPool1d(2)]
            channels, length = after, length // 2
        head = (nn.Linear(channels * length, self.hidden), nn.ReLU(), nn.Linear(self.hidden, len(spec.classes)))
        return nn.Sequential(*layers, nn.Flatten(), *head)
