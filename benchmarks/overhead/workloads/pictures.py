"""Pictures of noise for models to compute on: what is in them changes no time."""

import torch
from torch import Tensor

from privbench.benchmarks.tasks.task import Spec

CLASSES = 10


def spec(shape: tuple[int, ...]) -> Spec:
    """A data set of ten classes of pictures of one shape."""
    names = tuple(str(i) for i in range(CLASSES))
    plain = (shape[0], 1, 1)
    return Spec("noise", shape, names, torch.zeros(plain), torch.ones(plain), "image")


def batch(shape: tuple[int, ...], records: int, seed: int) -> tuple[Tensor, Tensor]:
    """``(records, *shape)`` in [0, 1] and labels."""
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(records, *shape, generator=draw), torch.randint(CLASSES, (records,), generator=draw)
