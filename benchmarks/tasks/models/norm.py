"""Normalisation layers by name."""

from typing import Literal

from torch import nn

Norm = Literal["none", "group", "batch"]


def norm2d(kind: Norm, channels: int) -> nn.Module:
    """A layer for ``(n, channels, h, w)``. ``group`` has 32 groups (Wu and He 2018), or the most that divide evenly.

    Batch normalisation mixes records: DP-SGD refuses it.
    """
    if kind == "none":
        return nn.Identity()
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(next(g for g in range(min(32, channels), 0, -1) if channels % g == 0), channels)
