"""Min-Max, Min-Sum and the attack on the rule in force (Shejwalkar and Houmansadr 2021): as far as will pass."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from privbench.attacks.poisoning.poisoner import Knowledge, Seen
from privbench.attacks.poisoning.untargeted import Untargeted
from privbench.benchmarks.build import require
from privbench.benchmarks.federation.update import Update

Direction = Literal["std", "mean", "sign"]


@dataclass(frozen=True)
class Farthest(Untargeted):
    """``mean + gamma p``, with the largest gamma that an attack allows.

    Args:
        direction: p: minus the coordinates' ``std``, minus the unit vector of the ``mean``, or minus its ``sign``.
    """

    direction: Direction = "std"

    FEWEST: ClassVar[int] = 2

    def bound(self, known: Tensor, step: Tensor) -> float:
        """The largest gamma."""
        raise NotImplementedError

    def made(self, known: Tensor, seen: Seen, updates: tuple[Update, ...]) -> Tensor:
        step = perturbation(known, self.direction)
        return known.mean(dim=0) + self.bound(known, step) * step


def perturbation(known: Tensor, direction: Direction) -> Tensor:
    """p of ``known``, ``(n, d)``: ``(d,)``."""
    mean = known.mean(dim=0)
    if direction == "std":
        return -known.std(dim=0)
    if direction == "sign":
        return -mean.sign()
    return -mean / mean.norm().clamp(min=1e-30)


def _quadratics(known: Tensor, step: Tensor) -> tuple[float, Tensor, Tensor]:
    """a, b, c of ||mean + gamma p - u_i||^2 = a gamma^2 + 2 b_i gamma + c_i; b and c are ``(n,)`` float64."""
    away = (known.mean(dim=0) - known).double()
    step = step.double()
    return float(step @ step), away @ step, away.square().sum(dim=1)


def _root(a: float, b: float, c: float) -> float:
    """The larger root of a x^2 + 2 b x + c, c <= 0; 0 where there is no direction to go."""
    return 0.0 if a == 0 else (-b + math.sqrt(max(0.0, b * b - a * c))) / a


@dataclass(frozen=True)
class MinMax(Farthest):
    """No farther from any honest update than two of them are from each other.

    The paper bisects; the distances are quadratic in gamma, so that the largest is known exactly.
    """

    def bound(self, known: Tensor, step: Tensor) -> float:
        a, b, c = _quadratics(known, step)
        widest = float(torch.cdist(known.double(), known.double()).max()) ** 2
        return min(_root(a, float(bi), min(0.0, float(ci) - widest)) for bi, ci in zip(b, c, strict=True))


@dataclass(frozen=True)
class MinSum(Farthest):
    """Its squared distances from honest updates sum to no more than those of any honest one."""

    def bound(self, known: Tensor, step: Tensor) -> float:
        a, b, c = _quadratics(known, step)
        most = float(torch.cdist(known.double(), known.double()).square().sum(dim=1).max())
        return _root(a * len(known), float(b.sum()), min(0.0, float(c.sum()) - most))


@dataclass(frozen=True)
class Adaptive(Farthest):
    """Made for the rule in force: the gamma with which the rule's result is farthest from that without an attack.

    The attacker has the rule and runs it, on honest updates (or its own clients', where those are hidden) together with
    its own; what the rule remembers of earlier rounds it hasn't. It searches gamma on a grid of powers of two and of
    what Min-Max and Min-Sum allow, then between the neighbours of the best. Where no gamma does more harm than another
    (its own are too few for the rule) it sends Min-Max's. A rule that draws at random is asked with the server's own
    draw: worst case.

    Args:
        longest: the largest gamma that is tried, > 0.
    """

    longest: float = 64.0

    STEPS: ClassVar[int] = 12
    """Halvings of the bracket around the best power of two: gamma is known to 1 in 1,000."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.longest < math.inf, "longest", self.longest, "positive")

    @property
    def asks(self) -> frozenset[Knowledge]:
        return super().asks | frozenset[Knowledge]({"rule"})

    def made(self, known: Tensor, seen: Seen, updates: tuple[Update, ...]) -> Tensor:
        mean, step = known.mean(dim=0), perturbation(known, self.direction)
        assert seen.aggregate is not None  # the federation gives what an attack asks for
        aggregate, p, own = seen.aggregate, known.shape[1], _senders(seen, updates[0])
        hidden = () if seen.honest else updates  # what its own trained stands for the honest

        def harm(gamma: float) -> float:
            crafted = [replace(u, vector=torch.cat([mean + gamma * step, u.vector[p:]])) for u in own]
            result = aggregate([*seen.honest, *hidden, *crafted])[:p]
            return float((result - mean).norm())

        others = MinMax().bound(known, step), MinSum().bound(known, step)
        return mean + search(harm, self.longest, self.STEPS, others) * step


def _senders(seen: Seen, like: Update) -> list[Update]:
    """What its clients' messages hold beside parameters: names, counts of records, buffers. Of a model without buffers
    nothing has to be trained for it.
    """
    records, buffers = seen.colluders.records, like.layout.size - like.layout.trainable
    if buffers or not records:
        return list(seen.colluders)
    return [Update(like.vector, like.layout, like.kind, n, client=c) for c, n in records.items()]


def search(harm: Callable[[float], float], longest: float, steps: int, others: tuple[float, ...] = ()) -> float:
    """Where ``harm`` on (0, ``longest``] is largest, as far as powers of two, ``others`` and golden sections tell.

    Where all of these are equal it is the first of ``others``.
    """
    inside = [g for g in others if 0 < g <= longest]
    grid = sorted({*(longest / 2**k for k in range(14)), *inside}, reverse=True)
    harms = [harm(g) for g in grid]
    if inside and min(harms) == max(harms):
        return inside[0]
    best = harms.index(max(harms))
    low = grid[best + 1] if best + 1 < len(grid) else 0.0
    high = grid[max(best - 1, 0)]
    golden = (math.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = harm(left), harm(right)
    for _ in range(steps):
        if at_left >= at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = harm(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = harm(right)
    return max((harms[best], grid[best]), (at_left, left), (at_right, right))[1]
