"""What an attack by optimisation minimises: for one observed gradient or for several at once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from privbench.attacks.leakage.objectives import Objective
from privbench.attacks.leakage.priors import Prior


class TwoForms(Protocol):
    """A gradient that can be differentiated again in several ways; see :class:`ClientGradient`."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """``(d,)`` for records ``(B, *shape)`` and labels, by plain automatic differentiation."""
        ...

    def functional(self, x: Tensor, y: Tensor) -> Tensor:
        """The same inside ``torch.func`` transforms."""
        ...

    def by_row(self, rows: int) -> Callable[[Tensor, Tensor], Tensor]:
        """``(R, d)`` for R rows, or NoRows, at once or when it is called."""
        ...


@dataclass(frozen=True)
class Problem:
    """For each target, find records (and labels) with ``objective(gradient(x, y), target) + sum_k weight_k prior_k(x)``
    least.

    All targets were computed at one model, from equally many records.

    Args:
        gradient: of a candidate batch at the observed model.
        targets: the observed gradients, ``(T, d)``.
        objective: distance of a gradient from a target.
        labels: ``(T, B)`` int64; ``None``: labels are optimised jointly, as the softmax of logits.
        priors: each with its weight by target, ``(T,)``.
        box: lowest and highest valid standardised values, broadcastable to an input; ``None``: no constraint.
        group: weight of ``mean((x - mean over a target's restarts)^2)`` (group consistency, Yin et al. 2021, eq. 11,
            without registration); 0 for none.
    """

    gradient: TwoForms
    targets: Tensor
    objective: Objective
    labels: Tensor | None
    priors: tuple[tuple[Prior, Tensor], ...] = ()
    box: tuple[Tensor, Tensor] | None = None
    group: float = 0.0

    def rows(self, restarts: int) -> "Rows":
        """What belongs to each of ``T * restarts`` descents, a target's own next to each other."""
        weights = [w.repeat_interleave(restarts) for _, w in self.priors]
        labels = None if self.labels is None else self.labels.repeat_interleave(restarts, 0)
        stacked = torch.stack(weights, 1) if weights else self.targets.new_zeros(len(self.targets) * restarts, 0)
        return Rows(self.targets.repeat_interleave(restarts, 0), labels, stacked)

    def distance(self, x: Tensor, y: Tensor, target: Tensor, functional: bool = False) -> Tensor:
        """The objective of one descent; ``y`` are labels ``(B,)`` or, where they are optimised, logits ``(B, C)``."""
        gradient = self.gradient.functional if functional else self.gradient
        return self.objective(gradient(x, y.softmax(-1) if self.labels is None else y), target)

    def cost(self, x: Tensor, y: Tensor, target: Tensor, weights: Tensor, centre: Tensor, functional: bool) -> Tensor:
        """Distance, priors and group consistency of one descent; ``weights`` ``(K,)``, ``centre`` like ``x``."""
        return self.distance(x, y, target, functional) + self.penalty(x, weights, centre)

    def penalty(self, x: Tensor, weights: Tensor, centre: Tensor) -> Tensor:
        """Priors and group consistency of one descent."""
        total = x.new_zeros(())
        for k, (prior, _) in enumerate(self.priors):
            total = total + weights[k] * prior(x)
        return total + self.group * (x - centre).square().mean() if self.group else total

    def clamp(self, x: Tensor) -> Tensor:
        """``x`` inside the box."""
        return x if self.box is None else torch.clamp(x, self.box[0], self.box[1])


@dataclass(frozen=True)
class Rows:
    """What differs between descents that run side by side.

    Args:
        targets: ``(R, d)``.
        labels: ``(R, B)``, or ``None`` for jointly optimised ones.
        weights: of the priors, ``(R, K)``.
    """

    targets: Tensor
    labels: Tensor | None
    weights: Tensor
