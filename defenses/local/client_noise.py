"""Noise that each client adds to its own clipped update."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from privbench.benchmarks.federation.update import Update
from privbench.defenses.accounting.plan import ClientPlan
from privbench.defenses.aggregation.mean import clip_factor
from privbench.defenses.local.local import Local
from privbench.defenses.noise import gaussian

if TYPE_CHECKING:
    from privbench.defenses.accounting.plan import Plan


@dataclass(frozen=True)
class ClientNoise(Local):
    """Every client clips its whole update to C and adds Gaussian noise before it sends (client-level privacy).

    The standard deviation on every coordinate is the plan's ``message_multiplier`` times C: z C under local noise,
    z C / sqrt(shares) under distributed noise, so that the sum of the shares carries z C. An update that isn't finite
    counts as zero, and is noised all the same; extras are dropped, since no noise covers them.
    """

    noised = True

    def send(self, update: Update, client: int, plan: "Plan | None", generator: torch.Generator) -> Update:
        assert isinstance(plan, ClientPlan)  # Defense refuses this station without such a plan
        norm = float(torch.linalg.vector_norm(update.vector, dtype=torch.float64))
        finite = norm < float("inf")  # False for NaN too
        clipped = update.vector * clip_factor(norm, plan.clip) if finite else torch.zeros_like(update.vector)
        std = plan.message_multiplier * plan.clip
        return replace(update, vector=clipped + gaussian(len(clipped), std, plan.noise_source, generator), extras={})
