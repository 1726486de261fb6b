"""What happens to the aggregate before the model leaves the server."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from privbench.benchmarks.federation.server import RoundContext
from privbench.benchmarks.federation.update import Update
from privbench.defenses.noise import gaussian


class Release(Protocol):
    """The release station.

    Attributes:
        private: it adds the noise that a client-level privacy plan counts on.
    """

    @property
    def private(self) -> bool: ...

    def release(
        self, aggregate: Update, state: dict[str, Any], context: RoundContext, noise: torch.Generator
    ) -> Update:
        """What may leave; ``noise`` is this round's stream."""
        ...


@dataclass(frozen=True)
class Unchanged:
    """The aggregate leaves as it is."""

    private = False

    def release(
        self, aggregate: Update, state: dict[str, Any], context: RoundContext, noise: torch.Generator
    ) -> Update:
        return aggregate


@dataclass(frozen=True)
class CentralGaussian:
    """Gaussian noise added once, to the mean of clipped updates (McMahan et al. 2018, DP-FedAvg).

    The standard deviation on every coordinate of the mean is ``z C / K``: multiplier and clip are the privacy plan's,
    unless the rule adapts the clip; K is the expected cohort size by which the sum was divided. An empty cohort is
    noised all the same.
    """

    private = True

    def release(
        self, aggregate: Update, state: dict[str, Any], context: RoundContext, noise: torch.Generator
    ) -> Update:
        return replace(aggregate, vector=aggregate.vector + _independent(aggregate, context, noise))


@dataclass(frozen=True)
class BandedGaussian:
    """Gaussian noise correlated over rounds, so that later noise takes back some of the earlier (DP-FTRL, Kairouz et
    al. 2021; banded matrices, Choquette-Choo et al. 2023).

    The independent noise that it is made of is :class:`CentralGaussian`'s, with z for one participation; the matrix is
    the plan's. What was added in the last ``bands - 1`` rounds is kept in the server's state, since the next noise
    depends on it: whoever reads a checkpoint has to be as trusted as who adds the noise.
    """

    private = True

    def release(
        self, aggregate: Update, state: dict[str, Any], context: RoundContext, noise: torch.Generator
    ) -> Update:
        matrix = getattr(context.plan, "matrix", None)
        assert matrix is not None  # Defense refuses this station without bands
        added = matrix.next(_independent(aggregate, context, noise), state.get("noise", []))
        state["noise"] = [added, *state.get("noise", [])][: len(matrix.coefficients) - 1]
        return replace(aggregate, vector=aggregate.vector + added)


def _independent(aggregate: Update, context: RoundContext, noise: torch.Generator) -> Tensor:
    plan = context.plan
    assert plan is not None  # Defense refuses these stations without a plan
    clip = float(aggregate.extras.get("clip", plan.clip))
    std = plan.update_multiplier * clip / context.expected
    return gaussian(len(aggregate.vector), std, plan.noise_source, noise)
