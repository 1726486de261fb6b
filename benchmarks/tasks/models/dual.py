"""Two encoders into one space, one of pictures and one of captions."""

from dataclasses import dataclass
from math import log
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privbench.benchmarks.build import ConfigError, require
from privbench.benchmarks.tasks.pairs import PairSpec, unpack
from privbench.benchmarks.tasks.task import Spec

FIRST, MOST = 1 / 0.07, 100.0
"""The factor on similarities: where it starts, and its bound (Radford et al. 2021, section 2.5)."""


class Embeddings(NamedTuple):
    """Of n pairs.

    Args:
        picture, text: ``(n, embedding)``, of length 1.
        scale: the factor on similarities, one over the temperature, ``(1,)``.
    """

    picture: Tensor
    text: Tensor
    scale: Tensor


@dataclass(frozen=True)
class DualEncoder:
    """Two 3x3 convolutions for pictures, a bag of words for captions; 16,097 parameters on captioned digits.

    Args:
        width: channels of the first convolution; the second has twice as many.
        hidden: width of a word.
        embedding: width of both embeddings.
    """

    width: int = 16
    hidden: int = 32
    embedding: int = 64

    def __post_init__(self) -> None:
        for name in ("width", "hidden", "embedding"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")

    def build(self, spec: Spec) -> nn.Module:
        hint = f"a model for {spec.name} ({spec.domain} of {spec.shape}); DualEncoder takes: pair"
        if not isinstance(spec, PairSpec):
            raise ConfigError("model", "DualEncoder", hint)
        channels, height, width = spec.picture.shape
        require(min(height, width) >= 4, "model", "DualEncoder", f"pictures from 4 pixels, not {height}x{width}")
        flat = 2 * self.width * (height // 4) * (width // 4)
        picture = nn.Sequential(
            nn.Conv2d(channels, self.width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(self.width, 2 * self.width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(flat, self.embedding),
        )
        bag = nn.EmbeddingBag(spec.vocabulary + 1, self.hidden, mode="mean", padding_idx=0)
        text = nn.Sequential(bag, nn.ReLU(), nn.Linear(self.hidden, self.embedding))
        return Dual(picture, text, spec.picture.shape)


class Dual(nn.Module):
    """A picture's and a caption's encoder, and the temperature that they share.

    Args:
        picture: maps ``(n, *shape)`` to ``(n, embedding)``.
        text: maps numbers of words, ``(n, words)`` int64 padded with 0, to ``(n, embedding)``.
        shape: of a picture.
    """

    def __init__(self, picture: nn.Module, text: nn.Module, shape: tuple[int, ...]):
        super().__init__()
        self.picture, self.text, self.shape = picture, text, shape
        self.log_scale = nn.Parameter(torch.full((1,), log(FIRST)))

    @property
    def scale(self) -> Tensor:
        """The factor on similarities, ``(1,)``, at most 100, and without a gradient beyond."""
        return self.log_scale.clamp(max=log(MOST)).exp()

    def encode_picture(self, pictures: Tensor) -> Tensor:
        # Convolution weights lie channels-last while it is trained, and pictures of the same layout are faster.
        return F.normalize(self.picture(pictures.contiguous(memory_format=torch.channels_last)), dim=1)

    def encode_text(self, words: Tensor) -> Tensor:
        return F.normalize(self.text(words), dim=1)

    def forward(self, x: Tensor) -> Embeddings:
        """Of packed pairs, ``(n, pixels + words)``."""
        pictures, words = unpack(x, self.shape)
        return Embeddings(self.encode_picture(pictures), self.encode_text(words), self.scale)
