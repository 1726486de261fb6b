"""Which way to compute clipped sums: the fastest on the model at hand, by a short measurement."""

import copy
import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from privbench.benchmarks.build import ConfigError, require
from privbench.defenses.local.per_sample.book_keeping import BookKeeping
from privbench.defenses.local.per_sample.engine import Engine, Loss, Units, Unsupported
from privbench.defenses.local.per_sample.loop import Loop
from privbench.defenses.local.per_sample.memory import units_at_once
from privbench.defenses.local.per_sample.vmap import Vmap

Name = Literal["book_keeping", "vmap", "loop"]
ENGINES: dict[Name, type[Engine]] = {"book_keeping": BookKeeping, "vmap": Vmap, "loop": Loop}
"""In the order in which they are preferred."""

MARGIN = 2.0
"""How many times as fast one must be to be preferred to one before it, so that the same run has the same choice again:
ways differ in rounding, and measurements in what else the machine does."""
HOPELESS = 3.0
"""How many times as slow the first call of one is that isn't measured any further."""


def choose(model: nn.Module, loss: Loss, units: Units, memory: float = 1.0, repeats: int = 5) -> Name:
    """The fastest of those that agree with the loop.

    Args:
        model: left as it is.
        loss: of a batch.
        units: as many as a step has, of any content.
        memory: GiB that parts of a batch are cut for.
        repeats: timed steps.
    """
    model = copy.deepcopy(model)
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.zeros_like(p)
    right = [name for name in ENGINES if name == "loop" or agrees(model, loss, name, units)]
    best, seconds = right[-1], float("inf")
    for name in right:
        engine = ENGINES[name](model, loss)
        parts = units.split(units_at_once(model, loss, units.split(1)[0], name, memory))
        taken = _seconds(engine, parts)
        if taken < HOPELESS * seconds:
            taken = min(_seconds(engine, parts) for _ in range(repeats))
        if taken * MARGIN < seconds:
            best, seconds = name, taken
    return best


def agrees(model: nn.Module, loss: Loss, name: Name, units: Units) -> bool:
    """Whether this way gives what the loop does, on two units and in float64."""
    # Without dropout, which each would draw for itself.
    exact = copy.deepcopy(model).double().eval()
    for p in exact.parameters():
        if p.requires_grad:
            p.grad = torch.zeros_like(p)
    few = units.take(torch.arange(min(2, len(units)), device=units.x.device))
    few = Units(few.x.double() if few.x.is_floating_point() else few.x, few.y, few.views)
    try:
        expected, found = (_sum(exact, loss, engine, few) for engine in (Loop, ENGINES[name]))
    except (Unsupported, RuntimeError, NotImplementedError):
        return False
    return torch.allclose(expected, found, rtol=1e-6, atol=1e-9)


def verify(model: nn.Module, loss: Loss, name: Name, units: Units) -> None:
    """Refuse a way that doesn't give what the loop does, such as of a layer whose weight is used outside of it too.

    Raises:
        ConfigError: naming the others.
    """
    make(name, copy.deepcopy(model), loss)
    hint = "auto or loop: its gradients of this model aren't those of one record after another, or fail in float64"
    require(name == "loop" or agrees(model, loss, name, units), "defense.local.per_sample", name, hint)


def make(name: Name, model: nn.Module, loss: Loss) -> Engine:
    """The engine of this name.

    Raises:
        ConfigError: if it can't do this model.
    """
    try:
        return ENGINES[name](model, loss)
    except Unsupported as error:
        raise ConfigError("defense.local.per_sample", name, f"auto, vmap or loop: {error}") from None


def _sum(model: nn.Module, loss: Loss, engine: Callable[[nn.Module, Loss], Engine], units: Units) -> Tensor:
    """Of the clipped gradients, flat."""
    for p in model.parameters():
        if p.grad is not None:
            p.grad.zero_()
    engine(model, loss).add(units, 1.0)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def _seconds(engine: Engine, parts: list[Units]) -> float:
    """That a batch takes."""
    start = time.perf_counter()
    for part in parts:
        engine.add(part, 1.0)
    if parts[0].x.is_cuda:
        torch.cuda.synchronize(parts[0].x.device)
    return time.perf_counter() - start
