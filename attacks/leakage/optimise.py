"""The engine of optimisation-based attacks: records whose gradient is the observed one."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, vmap

from privbench.attacks.leakage.attack import AttackFailed, Reconstruction, choose
from privbench.attacks.leakage.gradient import ClientGradient
from privbench.attacks.leakage.objectives import Objective, TotalVariation
from privbench.benchmarks.build import require
from privbench.benchmarks.federation.view import Public


@dataclass(frozen=True)
class Problem:
    """Find x (and labels) with ``objective(gradient(x, y), target) + weight * TV(x)`` least.

    Args:
        gradient: of the candidate records, at the observed model.
        target: the observed gradient, ``(d,)``.
        objective: distance of the two.
        labels: ``(B,)`` int64; ``None``: labels are optimised jointly, as the softmax of logits.
        weight: of total variation, in standardised space.
        box: lowest and highest valid standardised values, broadcastable to an input; ``None``: no constraint.
    """

    gradient: ClientGradient
    target: Tensor
    objective: Objective
    labels: Tensor | None
    weight: float = 0.0
    box: tuple[Tensor, Tensor] | None = None

    def _labels(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1) if self.labels is None else self.labels

    def distance(self, x: Tensor, logits: Tensor, functional: bool = False) -> Tensor:
        """The objective of one restart, a scalar; ``logits`` is ignored where labels are given."""
        gradient = self.gradient.functional if functional else self.gradient
        return self.objective(gradient(x, self._labels(logits)), self.target)

    def cost(self, x: Tensor, logits: Tensor, functional: bool = False) -> Tensor:
        """Distance and prior."""
        distance = self.distance(x, logits, functional)
        return distance + self.weight * TotalVariation()(x) if self.weight else distance

    def clamp(self, x: Tensor) -> Tensor:
        """``x`` inside the box."""
        return x if self.box is None else torch.clamp(x, self.box[0], self.box[1])


@dataclass(frozen=True)
class SignedAdam:
    """Adam on the sign of the gradient, its rate times 0.1 at 3/8, 5/8 and 7/8 (Geiping et al. 2020, appendix).

    All restarts make their steps together, by ``vmap`` where the model allows it.
    """

    iterations: int
    learning_rate: float

    def minimise(self, problem: Problem, x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """From ``x`` of shape ``(R, B, *shape)`` and ``logits`` of shape ``(R, B, C)`` to where the descent ends."""
        x, logits = x.clone(), logits.clone()
        variables = [x, logits] if problem.labels is None else [x]
        optimiser = torch.optim.Adam(variables, lr=self.learning_rate)
        slopes = descent(problem, x, logits)
        milestones = [self.iterations * k // 8 for k in (3, 5, 7)]
        for i in range(self.iterations):
            optimiser.param_groups[0]["lr"] = self.learning_rate * 0.1 ** sum(i >= m for m in milestones)
            for variable, slope in zip(variables, slopes(x, logits), strict=True):
                variable.grad = slope.sign()
            optimiser.step()
            x.copy_(problem.clamp(x))
        return x, logits


@dataclass(frozen=True)
class LBFGS:
    """L-BFGS with a strong Wolfe line search, one restart after the other.

    A history of 100: with 20 the reconstructions of a LeNet are 10 dB worse.
    """

    iterations: int
    learning_rate: float
    history: int = 100

    def minimise(self, problem: Problem, x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`SignedAdam.minimise`; the box holds for the result only."""
        ends = [self._one(problem, a, b) for a, b in zip(x, logits, strict=True)]
        return problem.clamp(torch.stack([a for a, _ in ends])), torch.stack([b for _, b in ends])

    def _one(self, problem: Problem, x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        x, logits = x.clone().requires_grad_(), logits.clone().requires_grad_(problem.labels is None)
        variables = [x, logits] if problem.labels is None else [x]
        optimiser = torch.optim.LBFGS(
            variables,
            lr=self.learning_rate,
            max_iter=self.iterations,
            history_size=self.history,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            value = problem.cost(x, logits)
            for variable, slope in zip(variables, torch.autograd.grad(value, variables), strict=True):
                variable.grad = slope
            return value.detach()

        optimiser.step(closure)
        return x.detach(), logits.detach()


def descent(problem: Problem, x: Tensor, logits: Tensor) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    """``slopes(x, logits)``: the cost's gradients for all restarts.

    With several restarts ``vmap``; a loop for one (``vmap`` costs half the speed there) and where ``vmap`` doesn't
    work or falls back to a slow path, which it says in a warning.
    """
    joint = problem.labels is None

    def loop(x: Tensor, logits: Tensor) -> tuple[Tensor, ...]:
        rows = []
        for a, b in zip(x, logits, strict=True):
            a, b = a.detach().requires_grad_(), b.detach().requires_grad_(joint)
            rows.append(torch.autograd.grad(problem.cost(a, b), [a, b] if joint else [a]))
        return tuple(torch.stack(column) for column in zip(*rows, strict=True))

    if len(x) == 1:
        return loop
    batched = vmap(grad(lambda a, b: problem.cost(a, b, functional=True), argnums=(0, 1) if joint else (0,)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            batched(x, logits)
    except (RuntimeError, ValueError, NotImplementedError, Warning):
        return loop
    return batched


def reconstruct(
    public: Public,
    problem: Problem,
    optimiser: SignedAdam | LBFGS,
    records: int,
    restarts: int,
    generator: torch.Generator,
) -> Reconstruction:
    """Run ``restarts`` descents from standard normal inputs and choose by the gradient objective alone.

    Raises:
        AttackFailed: if no restart stays finite, or the loss doesn't take the soft labels of a joint optimisation.
    """
    device = problem.target.device
    x = torch.randn(restarts, records, *public.shape, generator=generator).to(device)
    logits = torch.randn(restarts, records, public.classes, generator=generator).to(device)
    if problem.labels is None:
        _check_soft_labels(problem, x[0], logits[0])
    x, logits = optimiser.minimise(problem, x, logits)
    values = [problem.distance(a, b).detach() for a, b in zip(x, logits, strict=True)]
    labels = logits.argmax(-1) if problem.labels is None else problem.labels.expand(restarts, records)
    return choose(x, labels, torch.stack(values).tolist())


def _check_soft_labels(problem: Problem, x: Tensor, logits: Tensor) -> None:
    try:
        problem.distance(x, logits)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise AttackFailed(f"this loss doesn't take soft labels, choose labels=inferred ({error})") from error


def valid_range(public: Public) -> tuple[Tensor, Tensor] | None:
    """The standardised values of raw 0 and 1 for images ``(C, H, W)``; ``None`` for other inputs, without a range."""
    if len(public.shape) != 3:
        return None
    return -public.mean / public.std, (1 - public.mean) / public.std


def check_settings(iterations: int, restarts: int, learning_rate: float, total_variation: float | str) -> None:
    """Raise ConfigError for settings that no descent can use."""
    require(iterations >= 1, "iterations", iterations, "at least 1")
    require(restarts >= 1, "restarts", restarts, "at least 1")
    require(0 < learning_rate < math.inf, "learning_rate", learning_rate, "a positive, finite rate")
    sound = total_variation == "auto" or (isinstance(total_variation, float | int) and 0 <= total_variation < math.inf)
    require(sound, "total_variation", total_variation, "auto, or a finite weight of 0 or more")
