"""Residual networks, without in-place operations."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from privbench.benchmarks.build import require
from privbench.benchmarks.tasks.models.architecture import expect
from privbench.benchmarks.tasks.models.norm import norm2d
from privbench.benchmarks.tasks.models.standardised import standardise
from privbench.benchmarks.tasks.task import Spec


@dataclass(frozen=True)
class ResNet18:
    """He et al. 2016 as in torchvision, with random weights; 64 channels in the stem.

    Below 64 pixels the stem is a 3x3 convolution without pooling (their section 4.2), else the 7x7 one of
    stride 2 with pooling.

    Args:
        norm: ``group`` (Wu and He 2018) keeps records apart, as DP-SGD needs; ``batch`` is the original.
        weight_standardisation: of the convolutions (Qiao et al. 2019), as De et al. 2022 have it under DP-SGD.
    """

    norm: Literal["group", "batch"] = "group"
    weight_standardisation: bool = False

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
        return standardise(model) if self.weight_standardisation else model


@dataclass(frozen=True)
class ResNet20:
    """He et al. 2016, section 4.2, for small images: three stages of three blocks with 16, 32 and 64 channels.

    Args:
        width: multiplies the channels; 4 is the ResNet20-4 of Geiping et al. 2020.
        norm: ``group`` (Wu and He 2018) keeps records apart, as DP-SGD needs; ``batch`` is the original.
        weight_standardisation: of the convolutions (Qiao et al. 2019), as De et al. 2022 have it under DP-SGD.
    """

    width: int = 1
    norm: Literal["group", "batch"] = "group"
    weight_standardisation: bool = False

    def __post_init__(self) -> None:
        require(self.width >= 1, "width", self.width, "at least 1")

    def build(self, spec: Spec) -> nn.Module:
        expect(self, spec, "image", smallest=8)
        from privbench.benchmarks.tasks.models.residual import OutOfPlaceBlock

        before, layers = 16 * self.width, []
        layers += [nn.Conv2d(spec.shape[0], before, 3, padding=1, bias=False), norm2d(self.norm, before), nn.ReLU()]
        for channels in (16 * self.width, 32 * self.width, 64 * self.width):
            stride = 1 if channels == before else 2
            for block in range(3):
                shortcut = None
                if block == 0 and channels != before:
                    projection = nn.Conv2d(before, channels, 1, stride, bias=False)
                    shortcut = nn.Sequential(projection, norm2d(self.norm, channels))
                step = stride if block == 0 else 1
                layers.append(
                    OutOfPlaceBlock(before, channels, step, shortcut, norm_layer=lambda c: norm2d(self.norm, c))
                )
                before = channels
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, len(spec.classes)))
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        return standardise(model) if self.weight_standardisation else model
