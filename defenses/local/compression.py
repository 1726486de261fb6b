"""Compression of a client's update as a defense: heuristics that guarantee nothing, and state no epsilon."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from privbench.benchmarks.build import require
from privbench.benchmarks.federation.update import Update
from privbench.benchmarks.federation.view import Known
from privbench.defenses.local.local import Local

if TYPE_CHECKING:
    from privbench.defenses.accounting.plan import Plan


@dataclass(frozen=True)
class Pruning(Local):
    """Only the largest entries of the update are sent, the others are zero (Zhu et al. 2019, section 5.2; Lin et al.
    2018). Without Lin's residuals: what is left out is never sent.

    Buffers are sent whole. That an entry is zero is visible, so attacks are told and leave it out of their objective.

    Args:
        keep: share of the parameters that are sent, in (0, 1]: the 99% of the paper's Figure 7 is 0.01.
    """

    keep: float = 0.1
    heuristic = True

    def __post_init__(self) -> None:
        require(0 < self.keep <= 1, "keep", self.keep, "a share in (0, 1]")

    def known(self, source: str, client: int) -> Known:
        return Known(pruned=source == "update" and self.keep < 1)

    def send(self, update: Update, client: int, plan: "Plan | None", generator: torch.Generator) -> Update:
        p = update.layout.trainable
        sent = update.vector.clone()
        kept = max(1, math.ceil(self.keep * p))
        # A NaN is larger than any number here, and is sent: the server sees it.
        sent[:p][update.vector[:p].abs().argsort(descending=True)[kept:]] = 0.0
        return replace(update, vector=sent)


@dataclass(frozen=True)
class Quantisation(Local):
    """Every tensor of the update is rounded to few levels, at random and without bias (QSGD, Alistarh et al. 2017, with
    the largest entry in place of the norm).

    Args:
        bits: of each entry, its sign included, from 2 to 16: 2^(bits - 1) - 1 levels on each side of zero.
    """

    bits: int = 8
    heuristic = True

    def __post_init__(self) -> None:
        require(2 <= self.bits <= 16, "bits", self.bits, "from 2 to 16")

    def send(self, update: Update, client: int, plan: "Plan | None", generator: torch.Generator) -> Update:
        levels = 2 ** (self.bits - 1) - 1
        parts = [_rounded(part, levels, generator) for part in update.tensors.values()]
        return replace(update, vector=torch.cat([part.reshape(-1) for part in parts]))


def _rounded(values: Tensor, levels: int, generator: torch.Generator) -> Tensor:
    """``values`` on a grid of the largest over ``levels``: up with the probability that leaves the mean as it is."""
    largest = values.abs().max()
    if not 0 < float(largest) < math.inf:
        return values  # all zero, or not finite, which the server sees
    scaled = values / largest * levels
    low = scaled.floor()
    up = torch.rand(values.shape, generator=generator) < scaled - low
    return (low + up) * (largest / levels)
