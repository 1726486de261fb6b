"""Clients that don't make plain steps of SGD: momentum, and Adam."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from privbench.attacks.leakage.gradient import ClientGradient
from privbench.attacks.leakage.unrolled import visits
from privbench.benchmarks.federation.settings import LocalWork
from privbench.benchmarks.inversion.case import Case
from privbench.benchmarks.inversion.explain import Fault
from privbench.benchmarks.inversion.recipe import FAULTS, Recipe, batches, in_mode, reworked

USUAL = 0.9
BETAS, EPS = (0.9, 0.999), 1e-8
"""PyTorch's defaults."""

ALIKE = 0.1
"""Relative distance up to which a dump is a step of Adam: entries whose gradient is about ``EPS`` are uncertain."""


def with_momentum(case: Case, recipe: Recipe) -> Iterator[Recipe]:
    """The client with momentum 0.9, or without where some was declared, in the declared steps first, then up to 10.

    A first step from an empty buffer is the same with and without.
    """
    if case.public.kind != "update":
        return
    momentum = 0.0 if recipe.momentum else USUAL
    said = f"the client's SGD had momentum {momentum:g}" if momentum else "the client's SGD had no momentum"
    changed = replace(
        recipe, momentum=momentum, faults=(*recipe.faults, Fault("momentum", said, {"momentum": momentum}))
    )
    for steps in dict.fromkeys([recipe.steps, *range(2, 11)]):
        own = [recipe.batch] if steps == recipe.steps else []
        for batch in dict.fromkeys([*own, *batches(replace(recipe, steps=steps))]):
            yield reworked(changed, steps, batch) or changed


def adam(case: Case, recipe: Recipe) -> tuple[Fault, ...]:
    """Whether the dump is what Adam makes of the inputs, in one step or in those declared; empty if it isn't.

    The size of a step tells the learning rate, which is taken from the largest entry: none moves by more.
    """
    vector = case.dump.vector()
    if vector is None:
        return ()
    seen = vector.double()
    for steps in dict.fromkeys([recipe.steps, 1]):
        try:
            found = _adam(case, replace(recipe, steps=steps), float(seen.abs().max()) / steps)
        except FAULTS:
            continue
        found = found * (seen != 0) if case.known.pruned else found
        factor = float(found @ seen / found.square().sum().clamp_min(1e-300))
        if float((factor * found - seen).norm() / seen.norm()) <= ALIKE:
            how = f"{steps} step{'s' if steps > 1 else ''} of Adam"
            sign = "" if factor > 0 else ", with the opposite sign"
            rate = f"learning rate about {float(seen.abs().max()) / steps:.2g}"
            return (Fault("optimiser", f"it is {how} ({rate}{sign}), which hardly has more than the gradient's signs"),)
    return ()


def _adam(case: Case, recipe: Recipe, rate: float) -> torch.Tensor:
    """The update of Adam (Kingma and Ba 2015, algorithm 1), ``(layout.trainable,)`` float64."""
    public = replace(case.public, model=in_mode(case.public.model, recipe.mode))
    work = LocalWork(learning_rate=rate, batch_size=recipe.batch, steps=recipe.steps)
    model, size = case.sent.clone(), public.layout.trainable
    first = second = torch.zeros(size, dtype=torch.float64)
    for k, index in enumerate(visits(len(recipe.x), work), 1):
        slope = ClientGradient(public, model)(recipe.x[index], recipe.y[index]).detach().double()
        first = BETAS[0] * first + (1 - BETAS[0]) * slope
        second = BETAS[1] * second + (1 - BETAS[1]) * slope.square()
        step = first / (1 - BETAS[0] ** k) / ((second / (1 - BETAS[1] ** k)).sqrt() + EPS)
        model[:size] -= (rate * step).to(model)
    return model[:size].double() - case.sent[:size].double()
