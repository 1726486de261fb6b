"""Noise that each client adds to its own clipped update."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from privbench.benchmarks.federation.update import Update, length
from privbench.defenses.accounting.plan import ClientPlan
from privbench.defenses.aggregation.mean import clip_factor
from privbench.defenses.local.local import Local
from privbench.defenses.noise import discrete_gaussian, gaussian

if TYPE_CHECKING:
    from privbench.defenses.accounting.plan import Plan


@dataclass(frozen=True)
class ClientNoise(Local):
    """Every client clips its whole update to C and adds Gaussian noise before it sends (client-level privacy).

    The standard deviation on every coordinate is the plan's ``message_multiplier`` times C: z C under local noise,
    z C / sqrt(shares) under distributed noise, so that the sum of the shares carries z C. An update that isn't finite
    counts as zero, and is noised all the same; extras are dropped, since no noise covers them.

    Args:
        noise: ``gaussian``, in floating point; ``discrete``, a discrete Gaussian on multiples of the channel's grid, to
            which the update is rounded and within C (Kairouz et al. 2021; here without their rotation, since the grid
            is fine).
    """

    noise: Literal["gaussian", "discrete"] = "gaussian"
    noised = True

    @property
    def discrete(self) -> bool:
        return self.noise == "discrete"

    def send(self, update: Update, client: int, plan: "Plan | None", generator: torch.Generator) -> Update:
        assert isinstance(plan, ClientPlan)  # Defense refuses this station without such a plan
        grid, std = plan.grid, plan.message_multiplier * plan.clip
        if grid is None:
            clipped = _clipped(update.vector, plan.clip)
            noisy = clipped + gaussian(len(clipped), std, plan.noise_source, generator)
            return replace(update, vector=noisy, extras={})
        whole = (_clipped(update.vector, grid.bound(plan.clip)).double() / grid.step).round_()
        whole += discrete_gaussian(len(whole), std / grid.step, plan.noise_source, generator)
        # A power of two times an integer of 24 bits: float32 holds it exactly.
        return replace(update, vector=(whole * grid.step).float(), extras={})


def _clipped(vector: Tensor, bound: float) -> Tensor:
    norm = length(vector)
    finite = norm < float("inf")  # False for NaN too
    return vector * clip_factor(norm, bound) if finite else torch.zeros_like(vector)
