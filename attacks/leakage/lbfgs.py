"""L-BFGS for many problems at once: every evaluation serves all of them, each at a step of its own."""

from dataclasses import dataclass

import torch
from torch import Tensor

from privbench.attacks.leakage.descent import Descent
from privbench.attacks.leakage.pairs import Pairs
from privbench.attacks.leakage.problem import Problem

ARMIJO, CURVATURE = 1e-4, 0.9
"""Constants of the strong Wolfe conditions (Nocedal and Wright, section 3.1)."""

SEARCH = 25
"""Evaluations of one line search, after which its best point is taken."""


@dataclass(frozen=True)
class LBFGS:
    """L-BFGS with a strong Wolfe line search.

    No problem waits for another's line search: one may take its fifth trial step while the next starts a new
    direction. A history of 100: with 20 the reconstructions of a LeNet are 10 dB worse.

    Args:
        iterations: steps of each problem, with at most 5/4 as many evaluations.
        learning_rate: first step length of a line search.
        history: pairs of steps and slopes kept, at most: rows side by side share a ring of events, in which each has
            the pairs of its own line searches' ends. Of a LeNet of sigmoids nearly all, since the first step mostly
            ends the search; where rows search long at different times, a row keeps few of them.
    """

    iterations: int
    learning_rate: float
    history: int = 100

    @property
    def evaluations(self) -> int:
        """Of the cost, by each problem, at most."""
        return self.iterations * 5 // 4

    def minimise(self, problem: Problem, run: Descent, x: Tensor, y: Tensor, restarts: int) -> tuple[Tensor, Tensor]:
        """As :meth:`Adam.minimise <privbench.attacks.leakage.adam.Adam.minimise>`; the box holds for the result
        only, and group consistency has no place here."""
        joint, size = problem.labels is None, x[0].numel()
        centre = torch.zeros_like(x)

        def evaluate(flat: Tensor) -> tuple[Tensor, Tensor]:
            at = flat[:, :size].reshape(x.shape)
            logits = flat[:, size:].reshape(y.shape) if joint else y
            values, slope, y_slope = run.evaluate(at, logits, centre)
            parts = [slope.flatten(1)] + ([y_slope.flatten(1)] if y_slope is not None else [])
            return values, torch.cat(parts, 1)

        start = torch.cat([x.flatten(1), y.flatten(1)], 1) if joint else x.flatten(1)
        search = _Search(start, *evaluate(start), self)
        for _ in range(self.evaluations):
            if not bool(search.active.any()):
                break
            search.take(*evaluate(search.trial()))
        best = search.at
        return problem.clamp(best[:, :size].reshape(x.shape)), best[:, size:].reshape(y.shape) if joint else y


class _Search:
    """The state of R line searches in D dimensions; all tensors have R rows.

    A line search keeps the step ``low`` with the lowest value that has enough decrease, and ``high``, the other end of
    an interval that holds a good step (infinite before one is known).
    """

    def __init__(self, at: Tensor, value: Tensor, slope: Tensor, settings: LBFGS):
        self.settings, count = settings, len(at)
        self.at, self.value, self.slope = at.clone(), value, slope
        self.active = torch.isfinite(value) & torch.isfinite(slope).all(1)
        self.steps = torch.zeros(count, dtype=torch.int64, device=at.device)
        self._pairs = Pairs(max(1, settings.history * 9 // 8), at)
        self._direct(torch.ones_like(self.active))

    def trial(self) -> Tensor:
        """Where each row wants its cost."""
        return torch.where(self.active[:, None], self.at + self._t[:, None] * self._direction, self.at)

    def take(self, value: Tensor, slope: Tensor) -> None:
        """Go on with what was found at :meth:`trial`."""
        t, active = self._t, self.active
        along = (slope * self._direction).sum(1)
        finite = torch.isfinite(value) & torch.isfinite(along)
        enough = finite & (value <= self.value + ARMIJO * t * self._along) & (value <= self._low_value)
        flat = enough & (along.abs() <= -CURVATURE * self._along)
        self._tries += 1
        # Beyond a minimum, or too long a step: the interval's other end. Else it goes on from here.
        passed = enough & ~flat & (along * (self._high - self._low) >= 0)
        self._high = torch.where(passed, self._low, torch.where(enough, self._high, t))
        self._high_value = torch.where(passed, self._low_value, torch.where(enough, self._high_value, value))
        self._high_along = torch.where(passed, self._low_along, torch.where(enough, self._high_along, along))
        better = enough & active
        self._low = torch.where(better, t, self._low)
        self._low_value = torch.where(better, value, self._low_value)
        self._low_along = torch.where(better, along, self._low_along)
        self._low_slope = torch.where(better[:, None], slope, self._low_slope)
        narrow = torch.isfinite(self._high) & ((self._high - self._low).abs() * self._reach < 1e-9)
        ended = active & (flat | (self._tries >= SEARCH) | narrow)
        self._t = self._next(t)
        if bool(ended.any()):
            self._accept(ended)

    def _accept(self, ended: Tensor) -> None:
        """End line searches at their lowest point, and choose the next directions."""
        moved = ended & (self._low > 0)
        # Where no step along an approximated direction went down, the slope itself is tried once; then the row stops.
        again = ended & ~moved & (self._pairs.count > 0)
        self.active = self.active & ~(ended & ~moved & ~again)
        self._pairs.forget(again)
        step = self._low[:, None] * self._direction
        change = self._low_slope - self.slope
        product = (step * change).sum(1)
        keep = moved & (product > 1e-10 * change.square().sum(1).clamp_min(torch.finfo(step.dtype).tiny))
        if bool(keep.any()):
            self._pairs.add(keep, step, change, product)
        self.at = torch.where(moved[:, None], self.at + step, self.at)
        self.slope = torch.where(moved[:, None], self._low_slope, self.slope)
        self.value = torch.where(moved, self._low_value, self.value)
        self.steps += moved.long()
        self.active = self.active & (self.steps < self.settings.iterations) & (self.slope.abs().amax(1) > 0)
        self._direct(ended)

    def _direct(self, rows: Tensor) -> None:
        """New directions for ``rows``."""
        q = self._pairs.direction(self.slope)
        along = (q * self.slope).sum(1)
        # Rounding can turn a direction uphill.
        down = (along < 0)[:, None]
        q = torch.where(down, q, -self.slope)
        along = torch.where(down[:, 0], along, -self.slope.square().sum(1))
        first = (1 / self.slope.abs().sum(1).clamp_min(torch.finfo(q.dtype).tiny)).clamp_max(1.0)
        t = torch.where(self._pairs.count > 0, 1.0, first) * self.settings.learning_rate
        if not hasattr(self, "_direction"):
            self._direction, self._along, self._t = q, along, t
            self._tries = torch.zeros_like(self.steps)
            self._reach = q.abs().amax(1)
            self._begin(torch.ones_like(rows))
            return
        self._direction = torch.where(rows[:, None], q, self._direction)
        self._along = torch.where(rows, along, self._along)
        self._t = torch.where(rows, t, self._t)
        self._tries = torch.where(rows, 0, self._tries)
        self._reach = torch.where(rows, q.abs().amax(1), self._reach)
        self._begin(rows)

    def _begin(self, rows: Tensor) -> None:
        """An empty interval for a new line search."""
        zero, infinite = torch.zeros_like(self._t), torch.full_like(self._t, torch.inf)
        names = {"_low": zero, "_low_value": self.value, "_low_along": self._along}
        names |= {"_high": infinite, "_high_value": infinite, "_high_along": zero}
        for name, start in names.items():
            setattr(self, name, torch.where(rows, start, getattr(self, name, start)))
        self._low_slope = torch.where(rows[:, None], self.slope, getattr(self, "_low_slope", self.slope))

    def _next(self, t: Tensor) -> Tensor:
        """The next trial: longer while there is no interval, else by cubic interpolation inside of it."""
        low, high = self._low, self._high
        bounded = torch.isfinite(high)
        wide = torch.where(bounded, high - low, 1.0)
        d1 = (
            self._low_along
            + self._high_along
            - 3 * (self._low_value - self._high_value) / torch.where(bounded, low - high, 1.0)
        )
        root = (d1.square() - self._low_along * self._high_along).clamp_min(0).sqrt() * wide.sign()
        bottom = self._high_along - self._low_along + 2 * root
        cubic = high - wide * (self._high_along + root - d1) / torch.where(bottom == 0, 1.0, bottom)
        # Not nearer to an end than a tenth of the interval; halved where the interpolation makes no sense.
        fraction = torch.where(bounded, (cubic - low) / wide, 0.5)
        fraction = torch.where(torch.isfinite(fraction), fraction, 0.5).clamp(0.1, 0.9)
        return torch.where(bounded, low + fraction * wide, t * 4)
