"""How descents run side by side: one after the other, by ``vmap``, or compiled; and which of them pays."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from privbench.attacks.leakage.problem import Problem, Rows

Compile = Literal["auto", "never", "always"]

SIDE_BY_SIDE = 16
"""Descents that run together. More are no faster on a CPU, and the number must not depend on the machine's workers:
the last bits of a sum do depend on it."""

WORTH = 4e12
"""Floating-point operations of eager descents above which compiling pays: it takes 15 to 35 s, and saves half."""

Point = tuple[Tensor, Tensor, Tensor | None]


@dataclass(frozen=True)
class Descent:
    """Evaluates the cost of all rows.

    Args:
        evaluate: ``(x, y, centre) -> values (R,), slope of x, slope of y`` (``None`` where labels are given).
        how: in words, for the record.
    """

    evaluate: Callable[[Tensor, Tensor, Tensor], Point]
    how: str


def descent(problem: Problem, rows: Rows, x: Tensor, y: Tensor, evaluations: int, compile: Compile) -> Descent:
    """The fastest way to run ``rows``, by rules that give the same answer for the same work.

    One row runs in a loop (``vmap`` costs half the speed there), several by ``vmap``; the loop stands in where
    ``vmap`` doesn't work or falls back to a slow path, which it says in a warning. Compiled (``torch.compile``), either
    is about twice as fast after its start-up: with ``auto`` if the work is long enough.

    Args:
        x, y: of the start, ``(R, B, *shape)``; logits ``(R, B, C)`` or labels ``(R, B)``.
        evaluations: expected of each row.
        compile: ``always`` still falls back where a compiler is missing or the model can't be compiled.
    """
    loop = _loop(problem, rows)
    centre = torch.zeros_like(x)
    work = evaluations * len(x) * _operations(problem, rows, x, y) if compile == "auto" else 0.0
    wanted = compile == "always" or (compile == "auto" and work > WORTH)
    batched = _batched(problem, rows)
    possible = _works(batched, x, y, centre)
    if wanted and possible:
        compiled = _batched(problem, rows, torch.compile(_transformed(problem)))
        if _works(compiled, x, y, centre):
            return Descent(compiled, f"{len(x)} side by side, compiled")
    note = "compiling failed" if wanted and possible else f"not compiled: {work:.1g} operations, pays from {WORTH:.0g}"
    if compile == "never":
        note = "not compiled"
    if len(x) == 1 or not possible:
        return Descent(loop, f"{len(x)} in a loop" + (f", {note}" if possible else ", vmap refuses this model"))
    return Descent(batched, f"{len(x)} side by side by vmap, {note}")


def _operations(problem: Problem, rows: Rows, x: Tensor, y: Tensor) -> float:
    """Floating-point operations of one row's evaluation."""
    labels = None if rows.labels is None else rows.labels[:1]
    one = _loop(problem, Rows(rows.targets[:1], labels, rows.weights[:1]))
    with _Counter() as counter:
        one(x[:1], y[:1], torch.zeros_like(x[:1]))
    return counter.total


class _Counter(TorchDispatchMode):
    """Counts the operations of products and convolutions (``FlopCounterMode`` hooks modules, which forbids a second
    derivative)."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def _loop(problem: Problem, rows: Rows) -> Callable[[Tensor, Tensor, Tensor], Point]:
    joint = problem.labels is None

    def loop(x: Tensor, y: Tensor, centre: Tensor) -> Point:
        values, slopes = [], []
        for a, b, t, w, c in zip(x, y, rows.targets, rows.weights, centre, strict=True):
            a = a.detach().requires_grad_()
            b = b.detach().requires_grad_() if joint else b
            value = problem.cost(a, b, t, w, c, functional=False)
            slopes.append(torch.autograd.grad(value, [a, b] if joint else [a]))
            values.append(value.detach())
        columns = [torch.stack(column) for column in zip(*slopes, strict=True)]
        return torch.stack(values), columns[0], columns[1] if joint else None

    return loop


def _transformed(problem: Problem) -> Callable[..., tuple[tuple[Tensor, ...], Tensor]]:
    def cost(x: Tensor, y: Tensor, target: Tensor, weights: Tensor, centre: Tensor) -> Tensor:
        return problem.cost(x, y, target, weights, centre, functional=True)

    return vmap(grad_and_value(cost, argnums=(0, 1) if problem.labels is None else (0,)))


def _batched(
    problem: Problem, rows: Rows, transformed: Callable[..., tuple[tuple[Tensor, ...], Tensor]] | None = None
) -> Callable[[Tensor, Tensor, Tensor], Point]:
    function = transformed or _transformed(problem)

    def batched(x: Tensor, y: Tensor, centre: Tensor) -> Point:
        slopes, values = function(x, y, rows.targets, rows.weights, centre)
        return values, slopes[0], slopes[1] if len(slopes) > 1 else None

    return batched


def _works(evaluate: Callable[[Tensor, Tensor, Tensor], Point], x: Tensor, y: Tensor, centre: Tensor) -> bool:
    try:
        with warnings.catch_warnings():
            # vmap's slow path says so in a warning; what a compiler warns of is no fault.
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", message=".*performance drop.*")
            evaluate(x, y, centre)
    except Exception:  # whatever a user's model or a compiler raises, there is another way
        return False
    return True
