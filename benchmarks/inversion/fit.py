"""Up to where a recomputed gradient counts as the dump's: rounding, and published noise by its distribution."""

import math
from dataclasses import dataclass

import torch
from scipy.stats import chi2, norm
from torch import Tensor

from privbench.benchmarks.inversion.case import Case

FALSE = 1e-4
"""Probability with which noise alone makes a dump differ, over all tests of it together."""


@dataclass(frozen=True)
class Fit:
    """A test of ``seen = gradient + noise + rounding``, in the unit of the mean gradient.

    Without noise the norm of the residual decides. With noise it says little: that of ``d`` numbers is about
    ``std sqrt(d)``, and a residual that is smaller than that by far can still be a wrong one. So each tensor is tested
    by itself, by the norm of its residual (chi-squared) and by its projection on the gradient, which has the standard
    deviation of a single number.

    Args:
        rounding: norm that rounding may have, in each test.
        noise: standard deviation of published noise on each number.
        sizes: of the tensors.
        length: the dump's norm.
        pruned: whether entries of 0 have no noise.
    """

    rounding: float
    noise: float
    sizes: tuple[int, ...]
    length: float
    pruned: bool = False

    @classmethod
    def of(cls, case: Case) -> "Fit":
        """1e-3 for another order of operations on other hardware, 5e-3 for numbers of 16 bits; and what the rounding of
        a difference of float32 weights adds."""
        length = case.length
        rounding = (5e-3 if case.dump.coarse else 1e-3) * length
        if case.public.kind == "update":
            weights = case.sent[: case.public.layout.trainable].double()
            rounding += torch.finfo(torch.float32).eps * abs(case.unit) * float(weights.norm())
        sizes = tuple(math.prod(s) for s in case.dump.shapes)
        return cls(rounding, case.known.noise_std * abs(case.unit), sizes, length, case.known.pruned)

    @property
    def tolerance(self) -> float:
        """The norm up to which the whole residual is explained, relative to the dump's."""
        return (self.rounding + self._length(sum(self.sizes))) / self.length

    @property
    def _rate(self) -> float:
        """Of each test: of norm and projection, of each tensor and of all together."""
        return FALSE / (2 * len(self.sizes) + 2)

    def _length(self, numbers: int) -> float:
        return self.noise * math.sqrt(float(chi2.isf(self._rate, numbers))) if self.noise and numbers else 0.0

    def _step(self) -> float:
        return self.noise * float(norm.isf(self._rate / 2)) if self.noise else 0.0

    def slack(self, length: float) -> float:
        """By how much noise may change a factor of a gradient with norm ``length``."""
        return self._step() / length

    def __call__(self, seen: Tensor, gradient: Tensor) -> bool:
        """Both ``(layout.trainable,)`` float64, in the layout's order."""
        residual = seen - gradient
        parts = [(seen, residual, gradient)]
        if self.noise:
            parts += zip(*(torch.split(v, self.sizes) for v in (seen, residual, gradient)), strict=True)
        return all(self._one(*part) for part in parts)

    def _one(self, seen: Tensor, residual: Tensor, gradient: Tensor) -> bool:
        numbers = int(seen.count_nonzero()) if self.pruned else len(seen)
        if float(residual.norm()) > self.rounding + self._length(numbers):
            return False
        length = float(gradient.norm())
        along = abs(float(residual @ gradient)) / length if self.noise and length else 0.0
        return along <= self.rounding + self._step()
