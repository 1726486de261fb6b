"""What a dump was computed from, if not from what was declared: by trying what else it could be."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor

from privbench.benchmarks.inversion.candidates import common_standardisations, fitting_labels
from privbench.benchmarks.inversion.case import Case, Mode
from privbench.benchmarks.inversion.explain import Fault, explain
from privbench.benchmarks.inversion.fit import Fit
from privbench.benchmarks.inversion.optimisers import adam, with_momentum
from privbench.benchmarks.inversion.recipe import Recipe, batches, in_mode, recompute, reworked


def search(case: Case, declared: Recipe, fit: Fit) -> tuple[Fault, ...]:
    """The shortest list of faults that explains the dump; empty if none does."""
    momentum = [*with_momentum(case, declared)]
    singles = [*_other_mode(declared), *_other_x(case, declared), *_other_steps(case, declared), *momentum[:1]]
    for level in ([declared], singles):
        best = _shortest(case, level, fit)
        if best is not None:
            return best
        # Labels last: with a whole batch of them to choose, a simpler reason goes first.
        for recipe in level:
            y = fitting_labels(case, recipe.x, recipe.y, in_mode(case.public.model, recipe.mode))
            if y is not None:
                relabelled = replace(recipe, y=y, faults=(*recipe.faults, _labels_fault(recipe.y, y, case)))
                faults = _explained(case, relabelled, fit)
                if faults is not None:
                    return faults
    best = _shortest(case, momentum[1:], fit) or adam(case, declared)
    if best:
        return best
    pairs = [r for mode in _other_mode(declared) for r in chain(_other_x(case, mode), _other_steps(case, mode))]
    pairs += [r for x in _other_x(case, declared) for r in _other_steps(case, x)]
    return _shortest(case, pairs, fit) or ()


def _shortest(case: Case, recipes: list[Recipe], fit: Fit) -> tuple[Fault, ...] | None:
    """The explanation with the fewest faults; the first one that needs none beside its recipe's ends the search."""
    best = None
    for recipe in recipes:
        faults = _explained(case, recipe, fit)
        if faults is not None and (best is None or len(faults) < len(best)):
            best = faults
            if len(best) == len(recipe.faults):
                break
    return best


def _explained(case: Case, recipe: Recipe, fit: Fit) -> tuple[Fault, ...] | None:
    gradient = recompute(case, recipe)
    if gradient is None:
        return None
    # The dump was divided by the declared number of steps.
    found = explain(case, gradient.double() * (recipe.steps / case.steps), fit)
    # Nothing changed is no explanation: what was declared doesn't fit.
    return None if found is None else (*recipe.faults, *found) or None


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
        for batch in batches(replace(recipe, steps=steps)):
            other = reworked(recipe, steps, batch)
            if other is not None:
                yield other


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
