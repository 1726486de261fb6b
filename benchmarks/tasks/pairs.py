"""Pictures with captions as records: one row of numbers holds both, so that all that handles records handles pairs."""

from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from privbench.benchmarks.tasks.task import Data, Spec, Split


@dataclass(frozen=True, init=False)
class PairSpec(Spec):
    """What is public about pairs. ``shape`` is ``(pixels + words,)``, and ``classes`` are for zero-shot alone.

    Args:
        picture: of the picture alone.
        vocabulary: numbers of words are from 1 to ``vocabulary``; 0 is no word.
    """

    picture: Spec
    vocabulary: int

    # Shape, mean and deviation follow from the rest.
    def __init__(self, picture: Spec, words: int, vocabulary: int):
        pixels = prod(picture.shape)
        flat = [torch.broadcast_to(of, picture.shape).flatten() for of in (picture.mean, picture.std)]
        mean, std = (torch.cat([of, torch.full((words,), rest)]) for of, rest in zip(flat, (0.0, 1.0), strict=True))
        super().__init__(picture.name, (pixels + words,), picture.classes, mean, std, "pair", picture.group)
        object.__setattr__(self, "picture", picture)
        object.__setattr__(self, "vocabulary", vocabulary)

    @property
    def pixels(self) -> int:
        """Numbers of a picture, over all channels."""
        return prod(self.picture.shape)


@dataclass(frozen=True)
class Pairs:
    """A loaded data set of pairs.

    Args:
        data: records as :func:`pack` makes them, with a :class:`PairSpec`; labels of test records are classes, those
            of training records may be ``len(classes)``: a caption that names no class.
        prompts: captions of each class that nothing was trained on, ``(classes, prompts, words)`` int64.
        captions: of each class ``(captions, words)`` int64, what a poisoner writes beneath its pictures.
    """

    data: Data
    prompts: Tensor
    captions: tuple[Tensor, ...]

    @property
    def spec(self) -> PairSpec:
        assert isinstance(self.data.spec, PairSpec)
        return self.data.spec


class PairSource(Protocol):
    """A data set of pairs. Sources are frozen dataclasses: equal ones are loaded once per process."""

    def load(self, data_dir: str | None) -> Pairs:
        """Read it, as :meth:`privbench.benchmarks.tasks.task.Source.load`."""
        ...


def pack(pictures: Tensor, words: Tensor) -> Tensor:
    """Pictures ``(n, c, h, w)`` and captions ``(n, words)`` int64 as ``(n, c * h * w + words)`` float32.

    Float32 holds whole numbers below 2^24 exactly.
    """
    return torch.cat([pictures.flatten(1), words.to(pictures)], 1)


def unpack(x: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """What :func:`pack` packed: pictures ``(n, *shape)`` and captions ``(n, words)`` int64."""
    pixels = prod(shape)
    return x[:, :pixels].reshape(len(x), *shape), x[:, pixels:].long()


def pictures(records: Split, spec: PairSpec) -> Split:
    """The records without their captions."""
    return Split(unpack(records.x, spec.picture.shape)[0], records.y, records.group)
