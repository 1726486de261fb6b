"""Is the dump the gradient at the inputs that the user knows? If not, what is off: by trying what else it could be."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn

from privbench.attacks.leakage.gradient import ClientGradient
from privbench.attacks.leakage.unrolled import visits
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.settings import LocalWork
from privbench.benchmarks.inversion.candidates import common_standardisations, fitting_labels
from privbench.benchmarks.inversion.case import Case, Mode
from privbench.benchmarks.inversion.explain import Fault, explain
from privbench.benchmarks.tasks.task import Split

Verdict = Literal["agrees", "differs", "hidden by noise"]


@dataclass(frozen=True)
class Diagnosis:
    """How the gradient at the known inputs compares with the dump.

    Args:
        verdict: ``hidden by noise``: the published noise is as large as the gradient, and nothing can be said.
        error: ``|g - dump| / |dump|`` as everything was declared; ``None`` where tensors are in another order.
        tolerance: up to which ``error`` counts as agreement.
        faults: what, changed together, makes them agree; empty where nothing tried does.
    """

    verdict: Verdict
    error: float | None
    tolerance: float
    faults: tuple[Fault, ...] = ()

    @property
    def agrees(self) -> bool:
        return self.verdict != "differs"

    def __str__(self) -> str:
        off = "tensors are in another order" if self.error is None else f"relative error {self.error:.2g}"
        if self.verdict == "agrees":
            return f"the gradient at the known inputs is the dump's ({off})"
        if self.verdict == "hidden by noise":
            return f"the published noise hides whether the gradient at the known inputs is the dump's ({off})"
        if self.faults:
            named = "; ".join(f"{f.name}: {f.found}" for f in self.faults)
            return f"the gradient at the known inputs is not the dump's ({off}). It is with this changed: {named}"
        return (
            f"the gradient at the known inputs is not the dump's ({off}), nor with another order, mode, reduction, "
            "labels, sign, scale, standardisation or kind. Left are other weights (a random initialisation must be the "
            "same), another model or loss, augmented inputs, dropout, or more records"
        )


@dataclass(frozen=True)
class Recipe:
    """A way in which the dump may have been computed.

    Args:
        x, y: the batch.
        mode: of the model.
        steps: local steps.
        batch: records a local step, in consecutive parts of ``x``, epoch after epoch.
        faults: in which it isn't what was declared.
    """

    x: Tensor
    y: Tensor
    mode: Mode
    steps: int
    batch: int
    faults: tuple[Fault, ...] = ()


def diagnose(case: Case, truth: Split) -> Diagnosis:
    """Recompute the gradient at ``truth``; where it isn't the dump's, find the fewest changes with which it is.

    Tried are: the order of tensors (reversed, sorted by name, and any assignment among equal shapes), train or eval
    mode, sum or mean, labels (any, where the loss is linear in them), sign, factors, weight decay, the standardisation
    of ``x``, gradient or update and the local steps, each alone, then two of mode, standardisation, steps and labels.

    Raises:
        ConfigError: if the model has no gradient at ``truth``.
    """
    mode: Mode = "train" if case.public.model.training else "eval"
    work = case.public.work
    assert work is not None, "a case says how the client worked"
    declared = Recipe(truth.x, truth.y, mode, case.steps, work.batch(case.records))
    vector = case.dump.vector()
    gradient = recompute(case, declared)
    error = None
    limit = tolerance(case)
    if gradient is None:
        raise ConfigError("inputs", list(truth.x.shape), _no_gradient(case, declared))
    if vector is not None:
        error = _distance(case, gradient, vector)
        if limit >= 0.5:
            return Diagnosis("hidden by noise", error, limit)
        if error <= limit:
            return Diagnosis("agrees", error, limit)
    return Diagnosis("differs", error, limit, _search(case, declared, limit))


def _distance(case: Case, gradient: Tensor, vector: Tensor) -> float:
    seen = vector * case.unit
    return float((expected(case, gradient) - seen).norm() / seen.norm())


def _no_gradient(case: Case, recipe: Recipe) -> str:
    right = "inputs at which the model has a gradient that is finite and not zero"
    try:
        _steps(case, recipe)
    except _FAULTS as error:
        return f"{right} ({type(error).__name__}: {error})"
    return right


def tolerance(case: Case) -> float:
    """How far the recomputed gradient may be from the dump, relative to the dump.

    1e-3 for another order of operations on other hardware, 5e-3 for numbers of 16 bits; and what published noise, and
    the rounding of a difference of float32 weights, add.
    """
    tensors = [t.reshape(-1) for t in case.dump.tensors]
    vector = torch.cat(tensors) * case.unit
    noise = case.known.noise_std * abs(case.unit) * (math.sqrt(len(vector)) + 4)
    rounding = 0.0
    if case.public.kind == "update":
        eps = torch.finfo(torch.float32).eps
        rounding = eps * abs(case.unit) * float(case.sent[: len(vector)].norm())
    return (5e-3 if case.dump.coarse else 1e-3) + (noise + rounding) / float(vector.norm())


def expected(case: Case, gradient: Tensor) -> Tensor:
    """``gradient`` after the published clip of the client's whole vector."""
    if case.known.clip is None:
        return gradient
    length = float(gradient.norm()) / abs(case.unit)
    return gradient * min(1.0, case.known.clip / max(length, 1e-30))


def recompute(case: Case, recipe: Recipe) -> Tensor | None:
    """The gradient averaged over local steps, ``(layout.trainable,)``; ``None`` where the model fails or gives NaN."""
    try:
        found = _steps(case, recipe)
    except _FAULTS:
        return None
    return found if bool(torch.isfinite(found).all()) and bool(found.any()) else None


_FAULTS = (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError)
"""What a model raises that doesn't take a batch: BatchNorm in training mode a single record, for one."""


def _steps(case: Case, recipe: Recipe) -> Tensor:
    public = replace(case.public, model=in_mode(case.public.model, recipe.mode))
    work = LocalWork(learning_rate=public.learning_rate, batch_size=recipe.batch, steps=recipe.steps)
    model, total = case.sent.clone(), torch.zeros(public.layout.trainable)
    for index in visits(len(recipe.x), work):
        gradient = ClientGradient(public, model)(recipe.x[index], recipe.y[index]).detach()
        total += gradient
        model[: len(gradient)] -= public.learning_rate * gradient
    return total / recipe.steps


def _batches(recipe: Recipe) -> list[int]:
    """Records a step such that whole epochs make the steps; all of them come first."""
    records = len(recipe.x)
    sizes = {-(-records // p) for p in range(1, min(recipe.steps, records) + 1)}
    return sorted((b for b in sizes if recipe.steps % -(-records // b) == 0), reverse=True)


def in_mode(model: nn.Module, mode: Mode) -> nn.Module:
    """A copy in another mode."""
    return copy.deepcopy(model).train(mode == "train")


def _search(case: Case, declared: Recipe, limit: float) -> tuple[Fault, ...]:
    """The shortest list of faults that explains the dump; empty if none does."""
    singles = [*_other_mode(declared), *_other_x(case, declared), *_other_steps(case, declared)]
    for level in ([declared], singles):
        best = _shortest(case, level, limit)
        if best is not None:
            return best
        # Labels last: with a whole batch of them to choose, a simpler reason goes first.
        for recipe in level:
            y = fitting_labels(case, recipe.x, recipe.y, in_mode(case.public.model, recipe.mode))
            if y is not None:
                relabelled = replace(recipe, y=y, faults=(*recipe.faults, _labels_fault(recipe.y, y, case)))
                faults = _explained(case, relabelled, limit)
                if faults is not None:
                    return faults
    pairs = [r for mode in _other_mode(declared) for r in chain(_other_x(case, mode), _other_steps(case, mode))]
    pairs += [r for x in _other_x(case, declared) for r in _other_steps(case, x)]
    return _shortest(case, pairs, limit) or ()


def _shortest(case: Case, recipes: list[Recipe], limit: float) -> tuple[Fault, ...] | None:
    """The explanation with the fewest faults; the first one that needs none beside its recipe's ends the search."""
    best = None
    for recipe in recipes:
        faults = _explained(case, recipe, limit)
        if faults is not None and (best is None or len(faults) < len(best)):
            best = faults
            if len(best) == len(recipe.faults):
                break
    return best


def _explained(case: Case, recipe: Recipe, limit: float) -> tuple[Fault, ...] | None:
    gradient = recompute(case, recipe)
    if gradient is None:
        return None
    # The dump was divided by the declared number of steps.
    found = explain(case, expected(case, gradient) * (recipe.steps / case.steps), limit)
    return None if found is None else (*recipe.faults, *found)


def _other_mode(recipe: Recipe) -> Iterator[Recipe]:
    mode: Mode = "eval" if recipe.mode == "train" else "train"
    fault = Fault("mode", f"the model was in {mode} mode", {"mode": mode})
    yield replace(recipe, mode=mode, faults=(*recipe.faults, fault))


def _other_x(case: Case, recipe: Recipe) -> Iterator[Recipe]:
    mean, std, x = case.public.mean, case.public.std, recipe.x
    tried = [
        (x / 255, "the inputs were divided by 255"),
        (x * 255, "the inputs were in [0, 255]"),
        ((x - mean) / std, "the inputs were standardised with mean and std; x isn't"),
        (x * std + mean, "the inputs were raw, not standardised; x is"),
        ((x * std + mean) * 255, "the inputs were raw in [0, 255], not standardised; x is"),
        ((x / 255 - mean) / std, "the inputs were divided by 255 and standardised; x isn't"),
        *common_standardisations(x),
    ]
    for changed, found in tried:
        if not torch.equal(changed, x):
            fault = Fault("standardisation", found, {})
            yield replace(recipe, x=changed, faults=(*recipe.faults, fault))


def _other_steps(case: Case, recipe: Recipe) -> Iterator[Recipe]:
    if case.public.kind != "update":
        return
    for steps in dict.fromkeys([recipe.steps, *range(1, 11)]):
        for batch in _batches(replace(recipe, steps=steps)):
            right: dict[str, int] = {"local_steps": steps} if steps != recipe.steps else {}
            right |= {"batch_size": batch} if batch != recipe.batch else {}
            if right:
                found = f"the client made {steps} local step{'s' if steps > 1 else ''} of {batch} records"
                fault = Fault(next(iter(right)), found, right)
                yield replace(recipe, steps=steps, batch=batch, faults=(*recipe.faults, fault))


def _labels_fault(given: Tensor, y: Tensor, case: Case) -> Fault:
    found = y.tolist()
    if torch.equal(given.sort().values, y.sort().values):
        how = "they are in another order than the inputs"
    elif torch.equal((given - 1) % case.public.classes, y):
        how = "those given are one too high"
    elif torch.equal((given + 1) % case.public.classes, y):
        how = "those given are one too low"
    else:
        how = "those given are others"
    return Fault("labels", f"the dump is of labels {found}: {how}", {"labels": found})
