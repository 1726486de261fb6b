"""ResNet-18, without in-place operations."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from privbench.benchmarks.tasks.models.architecture import expect
from privbench.benchmarks.tasks.models.norm import norm2d
from privbench.benchmarks.tasks.task import Spec


@dataclass(frozen=True)
class ResNet18:
    """He et al. 2016 as in torchvision, with random weights; 64 channels in the stem.

    Below 64 pixels the stem is a 3x3 convolution without pooling (their section 4.2), else the 7x7 one of
    stride 2 with pooling.

    Args:
        norm: ``group`` (Wu and He 2018) keeps records apart, as DP-SGD needs; ``batch`` is the original.
    """

    norm: Literal["group", "batch"] = "group"

    def build(self, spec: Spec) -> nn.Module:
        expect(self, spec, "image", smallest=8)
        # torchvision takes a second to import, and only this model needs it.
        from torchvision.models.resnet import ResNet

        from privbench.benchmarks.tasks.models.residual import OutOfPlaceBlock

        model = ResNet(
            OutOfPlaceBlock, [2, 2, 2, 2], num_classes=len(spec.classes), norm_layer=lambda c: norm2d(self.norm, c)
        )
        model.relu = nn.ReLU()
        small = min(spec.shape[1:]) < 64
        kernel, stride = (3, 1) if small else (7, 2)
        model.conv1 = nn.Conv2d(spec.shape[0], 64, kernel, stride, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        if small:
            model.maxpool = nn.Identity()  # type: ignore[assignment]
        return model
