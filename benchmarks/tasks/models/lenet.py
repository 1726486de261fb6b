"""The model of Deep Leakage from Gradients."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from privbench.benchmarks.tasks.models.architecture import expect
from privbench.benchmarks.tasks.task import Spec


@dataclass(frozen=True)
class LeNet:
    """Zhu et al. 2019 (DLG, section 5.1): three 5x5 convolutions of 12 channels, sigmoids, one linear layer.

    Strides are 2, 2, 1 and nothing is pooled, so that the gradient has useful second derivatives.

    Args:
        init: ``zhu`` draws every weight and bias from U(-0.5, 0.5) as the authors' code does; ``default`` is PyTorch's.
    """

    init: Literal["zhu", "default"] = "zhu"

    def build(self, spec: Spec) -> nn.Module:
        expect(self, spec, "image")
        layers: list[nn.Module] = []
        channels, (height, width) = spec.shape[0], spec.shape[1:]
        for stride in (2, 2, 1):
            layers += [nn.Conv2d(channels, 12, 5, stride, padding=2), nn.Sigmoid()]
            channels, height, width = 12, -(-height // stride), -(-width // stride)
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(12 * height * width, len(spec.classes)))
        if self.init == "zhu":
            for parameter in model.parameters():
                nn.init.uniform_(parameter, -0.5, 0.5)
        return model
