"""What a poisoner does to each step of its clients' training: anomaly losses, projections and masks."""

from dataclasses import dataclass
from math import inf
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from privbench.benchmarks.build import require
from privbench.benchmarks.shares import at_most


class Training(Protocol):
    """What of a trainer can be steered.

    Attributes:
        weights, gradient: flat, ``(d,)`` parameters and the gradient of the step at hand; both are changed in place.
    """

    weights: Tensor
    gradient: Tensor


@runtime_checkable
class Steering(Protocol):
    """A poisoner's change of local training; one object serves all of its clients and keeps nothing."""

    def gradient(self, training: Training, anchor: Tensor, clean: Tensor) -> None:
        """Change the step's gradient, which has the terms of agreed penalties (weight decay, the proximal term).

        Args:
            training: at work.
            anchor: the parameters received, ``(d,)``.
            clean: the mean gradient of the client's own clean records at ``anchor``; empty unless :attr:`looks`.
        """
        ...

    def settle(self, training: Training, anchor: Tensor) -> None:
        """Change the parameters after a step."""
        ...

    @property
    def looks(self) -> bool:
        """Whether it needs the gradient of clean records."""
        ...


def project(weights: Tensor, anchor: Tensor, radius: float) -> None:
    """Move ``weights`` to the nearest point whose L2 distance from ``anchor`` is at most ``radius``, in place."""
    away = weights - anchor
    length = float(away.norm())
    if length > radius:
        torch.add(anchor, away, alpha=radius / length, out=weights)


@dataclass(frozen=True)
class ProjectedDescent:
    """Projected gradient descent (Sun et al. 2019; Wang et al. 2020): the update's L2 norm never exceeds a radius.

    Args:
        radius: of the update before it is boosted, > 0.
    """

    radius: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.radius < inf, "radius", self.radius, "positive")

    @property
    def looks(self) -> bool:
        return False

    def gradient(self, training: Training, anchor: Tensor, clean: Tensor) -> None:
        pass

    def settle(self, training: Training, anchor: Tensor) -> None:
        project(training.weights, anchor, self.radius)


@dataclass(frozen=True)
class ConstrainAndScale:
    """``alpha L_class + (1 - alpha) L_anomaly`` (Bagdasaryan et al. 2020, equation 4).

    Args:
        alpha: weight of the task's loss with the agreed penalties, in (0, 1]; 1 leaves it alone.
        anomaly: ``distance``: L2 norm of the update; ``cosine``: 1 - cosine of new and received parameters.
    """

    alpha: float = 0.5
    anomaly: Literal["distance", "cosine"] = "distance"

    def __post_init__(self) -> None:
        require(0 < self.alpha <= 1, "alpha", self.alpha, "a weight in (0, 1]")

    @property
    def looks(self) -> bool:
        return False

    def loss(self, weights: Tensor, anchor: Tensor) -> Tensor:
        """L_anomaly, differentiable in ``weights``; both are ``(d,)``."""
        if self.anomaly == "distance":
            return (weights - anchor).norm()
        return 1 - F.cosine_similarity(weights, anchor, dim=0)

    def gradient(self, training: Training, anchor: Tensor, clean: Tensor) -> None:
        weights = training.weights.detach().clone().requires_grad_()
        (strange,) = torch.autograd.grad(self.loss(weights, anchor), weights)
        training.gradient.mul_(self.alpha).add_(strange, alpha=1 - self.alpha)

    def settle(self, training: Training, anchor: Tensor) -> None:
        pass


@dataclass(frozen=True)
class Neurotoxin:
    """Train only parameters that honest clients hardly move, so that they don't undo it (Zhang et al. 2022).

    As in the authors' code, what honest clients move is known by the gradient of the attacker's own clean records. What
    is left alone doesn't move at all: penalties, which their optimiser adds behind the mask, are masked as well.

    Args:
        spared: share of the parameters with the largest clean gradients that is left alone, in [0, 1) (the paper's
            top-k of 5%).
        radius: of a projection after each step, as in :class:`ProjectedDescent`; ``None`` for none.
    """

    spared: float = 0.05
    radius: float | None = None

    def __post_init__(self) -> None:
        require(0 <= self.spared < 1, "spared", self.spared, "a share in [0, 1)")
        ranged = self.radius is None or 0 < self.radius < inf
        require(ranged, "radius", self.radius, "positive, or null")

    @property
    def looks(self) -> bool:
        return True

    def gradient(self, training: Training, anchor: Tensor, clean: Tensor) -> None:
        spared = at_most(self.spared, len(clean))
        if spared:
            training.gradient[clean.abs().topk(spared).indices] = 0

    def settle(self, training: Training, anchor: Tensor) -> None:
        if self.radius is not None:
            project(training.weights, anchor, self.radius)
