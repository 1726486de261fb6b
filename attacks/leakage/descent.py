"""How descents run side by side: in one pass, by ``vmap``, compiled or one after the other; and which of them pays."""

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
from privbench.attacks.leakage.rows import NoRows

Compile = Literal["auto", "never", "always"]

SIDE_BY_SIDE = 16
"""Descents that run together, and victims in one piece of a worker's work. Of a LeNet 16 take 0.7 ms each, 8 1.1 ms and
one 3.6 ms. The number must not depend on the machine's workers: the last bits of a sum do depend on it."""


@dataclass(frozen=True)
class Rate:
    """What an evaluation takes of one core, roughly, and by the same numbers everywhere: the same work must be done in
    the same way.

    Args:
        operations: floating-point ones, a second.
        overhead: seconds of everything else.
    """

    operations: float
    overhead: float

    def seconds(self, operations: float) -> float:
        """Of one evaluation of one row."""
        return self.overhead + operations / self.operations


BY_VMAP, IN_ONE_PASS, COMPILED = Rate(7.5e10, 1e-3), Rate(1.15e11, 6e-4), Rate(1.3e11, 3.5e-4)
"""Measured with a LeNet of 1e7 operations (1.13, 0.68 and 0.4 ms) and a ConvNet of 2e9 (26, 16.5 and 15 ms)."""

COMPILING = 60.0
"""CPU seconds that compiling takes, its own processes included: 40 for a LeNet, 80 for a ConvNet."""

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

    One row runs in a loop. Several go through the model in one pass where this gives what ``vmap`` gives at the start:
    on a CPU, for models of the usual layers that look at each record for itself. Else they run by ``vmap``, and in a
    loop where that doesn't work or falls back to a slow path, which it says in a warning. With ``auto`` they are
    compiled (``torch.compile``) if that saves more than it takes.

    Args:
        x, y: of the start, ``(R, B, *shape)``; logits ``(R, B, C)`` or labels ``(R, B)``.
        evaluations: expected of each row.
        compile: ``always`` still falls back where a compiler is missing or the model can't be compiled.
    """
    centre, count = torch.zeros_like(x), len(x)
    loop, batched = _loop(problem, rows), _batched(problem, rows)
    expected = _tried(batched, x, y, centre)
    possible, one_pass = expected is not None, None
    if count > 1 and x.device.type == "cpu" and expected is not None:
        # Not where vmap refuses: such models branch on their input, and one that agrees here may not agree later.
        one_pass = _one_pass(problem, rows, x, y, expected)
    note = "not compiled"
    if possible and compile != "never":
        operations = _operations(problem, rows, x, y)
        now = (BY_VMAP if one_pass is None else IN_ONE_PASS).seconds(operations)
        saved = evaluations * count * (now - COMPILED.seconds(operations))
        note = f"not compiled: saves about {saved:.0f} s, takes {COMPILING:.0f}"
        if compile == "always" or saved > COMPILING:
            compiled = _batched(problem, rows, torch.compile(_transformed(problem)))
            if _tried(compiled, x, y, centre) is not None:
                return Descent(compiled, f"{count} side by side, compiled")
            note = "compiling failed"
    if one_pass is not None:
        return Descent(one_pass, f"{count} side by side in one pass, {note}")
    if count == 1 or not possible:
        return Descent(loop, f"{count} in a loop" + (f", {note}" if possible else ", vmap refuses this model"))
    return Descent(batched, f"{count} side by side by vmap, {note}")


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


def _one_pass(
    problem: Problem, rows: Rows, x: Tensor, y: Tensor, expected: Point
) -> Callable[[Tensor, Tensor, Tensor], Point] | None:
    """``None`` where it is impossible or at the start doesn't give what is ``expected``."""
    joint = problem.labels is None
    distances, penalties = problem.objective.against(rows.targets), vmap(problem.penalty)
    try:
        gradients = problem.gradient.by_row(len(x))
    except NoRows:
        return None

    def one_pass(x: Tensor, y: Tensor, centre: Tensor) -> Point:
        x = x.detach().requires_grad_()
        y = y.detach().requires_grad_() if joint else y
        values = distances(gradients(x, y.softmax(-1) if joint else y)) + penalties(x, rows.weights, centre)
        slopes = torch.autograd.grad(values.sum(), [x, y] if joint else [x])
        return values.detach(), slopes[0], slopes[1] if joint else None

    found = _tried(one_pass, x, y, torch.zeros_like(x))
    return one_pass if found is not None and all(map(_agree, found, expected)) else None


def _agree(a: Tensor | None, b: Tensor | None) -> bool:
    """Up to rounding, row by row."""
    if a is None or b is None:
        return a is b
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    return bool(((a - b).norm(dim=1) <= 1e-3 * b.norm(dim=1)).all())


def _tried(evaluate: Callable[[Tensor, Tensor, Tensor], Point], x: Tensor, y: Tensor, centre: Tensor) -> Point | None:
    """What it gives; ``None`` where it doesn't work or only by a slow path."""
    try:
        with warnings.catch_warnings():
            # vmap's slow path says so in a warning; what a compiler warns of is no fault.
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", message=".*performance drop.*")
            return evaluate(x, y, centre)
    except Exception:  # whatever a user's model or a compiler raises, there is another way
        return None
