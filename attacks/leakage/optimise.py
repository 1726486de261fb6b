"""The engine of optimisation-based attacks: records whose gradient is the observed one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from privbench.attacks.leakage.adam import Adam
from privbench.attacks.leakage.attack import AttackFailed, Reconstruction, choose
from privbench.attacks.leakage.descent import SIDE_BY_SIDE, Compile, descent
from privbench.attacks.leakage.lbfgs import LBFGS
from privbench.attacks.leakage.problem import Problem
from privbench.benchmarks.build import require
from privbench.benchmarks.federation.view import Public

Init = Literal["normal", "uniform", "zeros"]

BLIND = "the gradient says nothing of the records: at no start does the objective depend on them (dead units)"


@dataclass(frozen=True)
class Effort:
    """How hard an attack tries.

    Args:
        restarts: from different random inputs.
        init: what they are drawn from: standard normal, uniform over valid pixels, or the training mean with a
            thousandth of noise.
        compile: as in :func:`~privbench.attacks.leakage.descent.descent`.
    """

    restarts: int = 1
    init: Init = "normal"
    compile: Compile = "auto"


def reconstruct(
    public: Public,
    problem: Problem,
    optimiser: Adam | LBFGS,
    records: int,
    effort: Effort,
    generators: Sequence[torch.Generator],
) -> list[Reconstruction | AttackFailed]:
    """Run every target's restarts, and choose among them by the gradient objective alone.

    Args:
        generators: one a target, the only source of its randomness.

    Returns:
        By target what was found, or why nothing was: no restart stayed finite.

    Raises:
        AttackFailed: the loss doesn't take the soft labels of a joint optimisation.
    """
    restarts, device = effort.restarts, problem.targets.device
    starts = [_start(public, records, effort, g) for g in generators]
    x = torch.cat([s[0] for s in starts]).to(device)
    logits = torch.cat([s[1] for s in starts]).to(device)
    rows = problem.rows(restarts)
    y = logits if rows.labels is None else rows.labels
    if rows.labels is None:
        _check_soft_labels(problem, x[0], logits[0])
    groups = [range(k, k + restarts) for k in range(0, len(x), restarts)]
    blind = [not any(_depends(problem, x[i], y[i], rows.targets[i]) for i in own) for own in groups]
    if all(blind):
        return [AttackFailed(BLIND)] * len(generators)
    run = descent(problem, rows, x, y, optimiser.evaluations, effort.compile)
    x, y = optimiser.minimise(problem, run, x, y, restarts)
    found = zip(x, y, rows.targets, strict=True)
    values = torch.stack([problem.distance(a, b, t).detach() for a, b, t in found]).tolist()
    labels = y.argmax(-1) if problem.labels is None else y
    results: list[Reconstruction | AttackFailed] = []
    for k, group in enumerate(groups):
        if blind[k]:
            results.append(AttackFailed(BLIND))
            continue
        own = slice(group.start, group.stop)
        try:
            results.append(choose(x[own], labels[own], values[own], run.how))
        except AttackFailed as failure:
            results.append(failure)
    return results


def _depends(problem: Problem, x: Tensor, y: Tensor, target: Tensor) -> bool:
    """Whether the objective depends on the records: behind dead units it doesn't, and any records fit.

    Also asked beside the start: one that is the answer already has no slope.
    """
    for at in (x.detach().clone(), x.detach() / 2 + 0.25):
        value = problem.distance(at.requires_grad_(), y, target)
        if value.requires_grad:
            (slope,) = torch.autograd.grad(value, at, allow_unused=True)
            if slope is not None and bool(slope.any()):
                return True
    return False


def chunks(targets: int, restarts: int) -> list[range]:
    """Targets that are attacked together, so many that about :data:`SIDE_BY_SIDE` descents run at a time."""
    size = max(1, SIDE_BY_SIDE // restarts)
    return [range(k, min(k + size, targets)) for k in range(0, targets, size)]


def _start(public: Public, records: int, effort: Effort, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    shape = (effort.restarts, records, *public.shape)
    x = torch.randn(shape, generator=generator)
    logits = torch.randn(effort.restarts, records, public.classes, generator=generator)
    if effort.init == "zeros":
        x = x / 1000
    elif effort.init == "uniform" and (box := valid_range(public)) is not None:
        low, high = (b.cpu() for b in box)
        x = low + (high - low) * torch.special.ndtr(x)
    return x, logits


def _check_soft_labels(problem: Problem, x: Tensor, logits: Tensor) -> None:
    try:
        problem.distance(x, logits, problem.targets[0])
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
