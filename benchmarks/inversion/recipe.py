"""A way in which a dump may have been computed, and the gradient that it gives."""

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from privbench.attacks.leakage.gradient import ClientGradient, flat
from privbench.attacks.leakage.unrolled import visits
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.settings import LocalWork
from privbench.benchmarks.inversion.case import Case, Mode
from privbench.benchmarks.inversion.explain import Fault


@dataclass(frozen=True)
class Recipe:
    """A way in which the dump may have been computed.

    Args:
        x, y: the batch.
        mode: of the model.
        steps: local steps.
        batch: records a local step, in consecutive parts of ``x``, epoch after epoch.
        momentum: of the client's SGD.
        faults: in which it isn't what was declared.
    """

    x: Tensor
    y: Tensor
    mode: Mode
    steps: int
    batch: int
    momentum: float = 0.0
    faults: tuple[Fault, ...] = ()


def declared(case: Case, x: Tensor, y: Tensor) -> Recipe:
    """The one that the user's settings describe."""
    work = case.public.work
    assert work is not None, "a case says how the client worked"
    mode: Mode = "train" if case.public.model.training else "eval"
    return Recipe(x, y, mode, case.steps, work.batch(case.records), work.momentum)


def recompute(case: Case, recipe: Recipe) -> Tensor | None:
    """The gradient averaged over local steps, ``(layout.trainable,)``; ``None`` where the model fails or gives NaN."""
    try:
        found = _steps(case, recipe)
    except FAULTS:
        return None
    return found if bool(torch.isfinite(found).all()) and bool(found.any()) else None


FAULTS = (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError)
"""What a model raises that doesn't take a batch: BatchNorm in training mode a single record, for one."""


def _steps(case: Case, recipe: Recipe) -> Tensor:
    public = replace(case.public, model=in_mode(case.public.model, recipe.mode))
    work = LocalWork(learning_rate=public.learning_rate, batch_size=recipe.batch, steps=recipe.steps)
    gradient = ClientGradient(public, case.sent)
    now = {name: p.detach() for name, p in gradient.parameters.items()}
    velocity = total = {name: torch.zeros_like(p) for name, p in now.items()}
    for index in visits(len(recipe.x), work):
        slope = gradient.at({n: p.requires_grad_() for n, p in now.items()}, recipe.x[index], recipe.y[index])
        velocity = {n: recipe.momentum * velocity[n] + s.detach() for n, s in slope.items()}
        total = {n: t + velocity[n] for n, t in total.items()}
        now = {n: p.detach() - public.learning_rate * velocity[n] for n, p in now.items()}
    return flat(total) / recipe.steps


def no_gradient(case: Case, recipe: Recipe) -> ConfigError:
    """Why :func:`recompute` is ``None``."""
    right, reason = "inputs at which the model has a gradient that is finite and not zero", ""
    try:
        _steps(case, recipe)
    except FAULTS as error:
        reason = f" ({type(error).__name__}: {error})"
    return ConfigError("inputs", list(recipe.x.shape), f"{right}{reason}")


def reworked(recipe: Recipe, steps: int, batch: int) -> Recipe | None:
    """The same in other local steps, with the fault named; ``None`` if they are no others."""
    right = {"local_steps": steps} if steps != recipe.steps else {}
    right |= {"batch_size": batch} if batch != recipe.batch else {}
    if not right:
        return None
    found = f"the client made {steps} local step{'s' if steps > 1 else ''} of {batch} records"
    return replace(recipe, steps=steps, batch=batch, faults=(*recipe.faults, Fault(next(iter(right)), found, right)))


def batches(recipe: Recipe) -> list[int]:
    """Records a step such that whole epochs make the steps; all of them come first."""
    records = len(recipe.x)
    sizes = {-(-records // p) for p in range(1, min(recipe.steps, records) + 1)}
    return sorted((b for b in sizes if recipe.steps % -(-records // b) == 0), reverse=True)


def in_mode(model: nn.Module, mode: Mode) -> nn.Module:
    """A copy in another mode."""
    return copy.deepcopy(model).train(mode == "train")
