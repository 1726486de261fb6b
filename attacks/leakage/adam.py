"""First-order descents, with the papers' schedules."""

from dataclasses import dataclass

import torch
from torch import Tensor

from privbench.attacks.leakage.descent import Descent
from privbench.attacks.leakage.problem import Problem

CENTRED = 50
"""Iterations between two estimates of a group's mean."""


@dataclass(frozen=True)
class Adam:
    """Adam, its rate times 0.1 at 3/8, 5/8 and 7/8 (Geiping et al. 2020, appendix).

    Args:
        iterations: of each descent.
        learning_rate: in standardised space, before its decay.
        signed: step on the sign of the gradient, as the paper does.
    """

    iterations: int
    learning_rate: float
    signed: bool = True

    @property
    def evaluations(self) -> int:
        """Of the cost, by each descent."""
        return self.iterations

    def minimise(self, problem: Problem, run: Descent, x: Tensor, y: Tensor, restarts: int) -> tuple[Tensor, Tensor]:
        """From ``x`` ``(R, B, *shape)`` and ``y`` (logits ``(R, B, C)``, or labels ``(R, B)``) to where it ends.

        Args:
            restarts: rows next to each other that share a target.
        """
        joint = problem.labels is None
        x, y = x.clone(), y.clone()
        optimiser = torch.optim.Adam([x, y] if joint else [x], lr=self.learning_rate)
        milestones = [self.iterations * k // 8 for k in (3, 5, 7)]
        centre = torch.zeros_like(x)
        for i in range(self.iterations):
            if problem.group and i % CENTRED == 0:
                groups = x.view(-1, restarts, *x.shape[1:])
                centre = groups.mean(1, keepdim=True).expand_as(groups).reshape(x.shape)
            optimiser.param_groups[0]["lr"] = self.learning_rate * 0.1 ** sum(i >= m for m in milestones)
            _, x.grad, y_slope = run.evaluate(x, y, centre)
            if self.signed:
                x.grad = x.grad.sign()
            if y_slope is not None:
                y.grad = y_slope.sign() if self.signed else y_slope
            optimiser.step()
            x.copy_(problem.clamp(x))
        return x, y
