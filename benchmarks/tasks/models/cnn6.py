"""The model of the recursive gradient attack."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from privbench.benchmarks.tasks.models.architecture import expect
from privbench.benchmarks.tasks.task import Spec

LAYERS = ((12, 4, 2, 2), (36, 3, 2, 1), (36, 3, 1, 1), (36, 3, 1, 1), (64, 3, 2, 1), (128, 3, 1, 1))
"""Channels, kernel, stride and padding of each convolution."""


@dataclass(frozen=True)
class CNN6:
    """Zhu and Blaschko 2021 (R-GAP, figure 3): six convolutions and one linear layer, nothing pooled.

    As in their code, convolutions have no bias, and LeakyReLU's negative slope is 0.2. The last layer has one unit a
    class and a bias, as in breaching's copy, whose 154,266 parameters it has on CIFAR-10; theirs has a single unit
    without one. For signals the same convolutions go over time.

    Args:
        bias: whether convolutions have one.
        activation: after each convolution; the attack needs one that can be undone.
    """

    bias: bool = False
    activation: Literal["leaky_relu", "relu", "sigmoid", "tanh"] = "leaky_relu"

    def build(self, spec: Spec) -> nn.Module:
        signal = spec.domain == "signal"
        expect(self, spec, "signal" if signal else "image")
        convolution = nn.Conv1d if signal else nn.Conv2d
        act = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "leaky_relu": lambda: nn.LeakyReLU(0.2)}
        layers: list[nn.Module] = []
        channels, edges = spec.shape[0], spec.shape[1:]
        for after, kernel, stride, padding in LAYERS:
            layers += [convolution(channels, after, kernel, stride, padding, bias=self.bias), act[self.activation]()]
            channels, edges = after, [(edge + 2 * padding - kernel) // stride + 1 for edge in edges]
        flat = channels
        for edge in edges:
            flat *= edge
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, len(spec.classes)))
