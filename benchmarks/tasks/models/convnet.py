"""The convolutional network of the gradient inversion literature."""

from dataclasses import dataclass

from torch import nn

from privbench.benchmarks.build import require
from privbench.benchmarks.tasks.models.architecture import expect
from privbench.benchmarks.tasks.models.norm import Norm, norm2d
from privbench.benchmarks.tasks.task import Spec


@dataclass(frozen=True)
class ConvNet:
    """Eight 3x3 convolutions and one linear layer (Geiping et al. 2020, and ``ConvNet`` in their breaching).

    Widths are (1, 2, 2, 4, 4, 4, 4, 4) times ``width``; 3x3 max-pooling follows the sixth and the eighth.

    Args:
        width: channels of the first convolution; the paper has 64.
        norm: after each convolution; the authors use ``batch``, which DP-SGD refuses.
    """

    width: int = 64
    norm: Norm = "none"

    def __post_init__(self) -> None:
        require(self.width >= 1, "width", self.width, "at least 1")

    def build(self, spec: Spec) -> nn.Module:
        expect(self, spec, "image", smallest=9)
        layers: list[nn.Module] = []
        channels, height, width = spec.shape
        for i, factor in enumerate((1, 2, 2, 4, 4, 4, 4, 4)):
            after = factor * self.width
            layers += [nn.Conv2d(channels, after, 3, padding=1), norm2d(self.norm, after), nn.ReLU()]
            if i in (5, 7):
                layers.append(nn.MaxPool2d(3))
            channels = after
        flat = channels * (height // 3 // 3) * (width // 3 // 3)
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, len(spec.classes)))
