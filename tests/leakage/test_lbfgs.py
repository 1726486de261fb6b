"""The batched L-BFGS: each row reaches its own minimum, whatever the others do."""

import pytest
import torch
from torch import Tensor

from privbench.attacks.leakage.lbfgs import LBFGS, _Search
from privbench.attacks.leakage.pairs import Pairs


def run(search: _Search, cost, most: int = 1000) -> int:
    for k in range(most):
        if not search.active.any():
            return k
        search.take(*cost(search.trial()))
    return most


def quadratic(rows: int, size: int):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(rows, size, size, generator=generator, dtype=torch.float64)
    a = a @ a.transpose(1, 2) + 0.1 * torch.eye(size)
    b = torch.randn(rows, size, generator=generator, dtype=torch.float64)

    def cost(x: Tensor) -> tuple[Tensor, Tensor]:
        ax = (a @ x[..., None])[..., 0]
        return (x * ax).sum(1) / 2 - (b * x).sum(1), ax - b

    return cost, torch.linalg.solve(a, b)


def rosenbrock(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    value = (100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(1)
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


def test_quadratics_are_solved_row_by_row():
    cost, solution = quadratic(5, 30)
    start = torch.zeros(5, 30, dtype=torch.float64)
    search = _Search(start, *cost(start), LBFGS(200, 1.0))
    run(search, cost)
    torch.testing.assert_close(search.at, solution, rtol=1e-5, atol=1e-6)


def test_as_many_evaluations_as_torch_needs():
    start = torch.full((1, 10), -0.5, dtype=torch.float64)
    search = _Search(start, *rosenbrock(start), LBFGS(500, 1.0))
    ours = run(search, rosenbrock)
    x, calls = start[0].clone().requires_grad_(), []
    theirs = torch.optim.LBFGS([x], max_iter=500, max_eval=1000, line_search_fn="strong_wolfe", tolerance_change=0)

    def closure() -> Tensor:
        calls.append(1)
        value, slope = rosenbrock(x[None])
        x.grad = slope[0]
        return value[0]

    theirs.step(closure)
    torch.testing.assert_close(search.at[0], torch.ones(10, dtype=torch.float64), rtol=1e-4, atol=1e-4)
    assert ours < 1.3 * len(calls)


def test_rows_do_not_depend_on_each_other():
    cost, _ = quadratic(1, 20)
    start = torch.randn(4, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    together = _Search(start, *cost(start), LBFGS(25, 1.0))
    run(together, cost)
    for k in range(4):
        alone = _Search(start[[k]], *cost(start[[k]]), LBFGS(25, 1.0))
        run(alone, cost)
        torch.testing.assert_close(together.at[k], alone.at[0])


@pytest.mark.parametrize("steps", [1, 3])
def test_no_row_takes_more_steps_than_asked(steps):
    start = torch.full((3, 10), -1.5, dtype=torch.float64)
    search = _Search(start, *rosenbrock(start), LBFGS(steps, 1.0))
    run(search, rosenbrock)
    assert search.steps.tolist() == [steps] * 3


def test_a_row_that_is_not_finite_stays_out_and_the_others_go_on():
    cost, solution = quadratic(2, 8)
    start = torch.zeros(2, 8, dtype=torch.float64)
    value, slope = cost(start)
    value[0] = float("nan")
    search = _Search(start, value, slope, LBFGS(100, 1.0))
    run(search, cost)
    assert torch.equal(search.at[0], start[0])
    torch.testing.assert_close(search.at[1], solution[1], rtol=1e-5, atol=1e-6)


def test_a_cost_that_is_infinite_beyond_a_step_is_approached():
    def cost(x: Tensor) -> tuple[Tensor, Tensor]:
        # A logarithmic barrier at 1: the first steps land behind it.
        inside = x.amax(1) < 1
        value = torch.where(inside, -torch.log((1 - x).clamp_min(1e-300)).sum(1) - 50 * x.sum(1), torch.inf)
        return value, 1 / (1 - x) - 50

    start = torch.zeros(2, 3, dtype=torch.float64)
    search = _Search(start, *cost(start), LBFGS(100, 1.0))
    run(search, cost)
    torch.testing.assert_close(search.at, torch.full_like(start, 0.98), rtol=1e-4, atol=1e-5)


def test_directions_are_those_of_the_two_loop_recursion():
    """Also where some rows had no pair in an event, beyond what is remembered, and after one row forgot."""
    generator = torch.Generator().manual_seed(0)
    rows, size, slots = 3, 12, 5
    curvature = torch.rand(size, generator=generator, dtype=torch.float64) + 0.5
    memory = Pairs(slots, torch.zeros(rows, size, dtype=torch.float64))
    events: list[list[tuple[Tensor, Tensor] | None]] = []
    for event in range(9):
        step = torch.randn(rows, size, generator=generator, dtype=torch.float64)
        new = torch.rand(rows, generator=generator) < 0.7
        if event == 6:
            memory.forget(torch.tensor([False, True, False]))
            events = [[None if r == 1 else p for r, p in enumerate(e)] for e in events]
        change = step * curvature
        memory.add(new, step, change, (step * change).sum(1))
        events.append([(step[r], change[r]) if new[r] else None for r in range(rows)])
        slope = torch.randn(rows, size, generator=generator, dtype=torch.float64)
        found = memory.direction(slope)
        for r in range(rows):
            # The scale outlives its pair.
            ever = [p for e in events if (p := e[r]) is not None]
            pairs = [p for e in events[-slots:] if (p := e[r]) is not None]
            torch.testing.assert_close(found[r], two_loops(slope[r], pairs, ever))


def two_loops(slope: Tensor, pairs: list[tuple[Tensor, Tensor]], ever: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Nocedal and Wright, algorithm 7.4."""
    q, alphas = slope.clone(), []
    for s, y in reversed(pairs):
        alphas.append((s @ q) / (s @ y))
        q -= alphas[-1] * y
    if ever:
        q *= (ever[-1][0] @ ever[-1][1]) / (ever[-1][1] @ ever[-1][1])
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        q += s * (alpha - (y @ q) / (s @ y))
    return -q
