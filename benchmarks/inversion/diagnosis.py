"""Is the dump the gradient at the inputs that the user knows? If not, what is off: by trying what else it could be."""

from dataclasses import dataclass
from typing import Literal

from privbench.benchmarks.inversion.case import Case
from privbench.benchmarks.inversion.explain import Fault, expected
from privbench.benchmarks.inversion.fit import Fit
from privbench.benchmarks.inversion.recipe import declared, no_gradient, recompute
from privbench.benchmarks.inversion.search import search
from privbench.benchmarks.tasks.task import Split

Verdict = Literal["agrees", "differs", "hidden by noise"]

VAGUE = 0.1
"""Tolerance above which agreement means no more than that nothing speaks against it."""

HIDDEN = 0.5
"""Tolerance from which it means nothing."""


@dataclass(frozen=True)
class Diagnosis:
    """How the gradient at the known inputs compares with the dump.

    Args:
        verdict: ``hidden by noise``: the published noise is as large as the gradient, and nothing can be said.
        error: ``|g - dump| / |dump|`` as everything was declared; ``None`` where tensors are in another order.
        tolerance: ``error`` that rounding and published noise explain. With noise, each tensor is tested by itself too:
            see :class:`~privbench.benchmarks.inversion.fit.Fit`.
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
        if self.verdict == "agrees" and self.tolerance > VAGUE:
            return f"the gradient at the known inputs is consistent with the dump, up to its published noise ({off})"
        if self.verdict == "agrees":
            return f"the gradient at the known inputs is the dump's ({off})"
        if self.verdict == "hidden by noise":
            return f"the published noise hides whether the gradient at the known inputs is the dump's ({off})"
        if self.faults:
            named = "; ".join(f"{f.name}: {f.found}" for f in self.faults)
            return f"the gradient at the known inputs is not the dump's ({off}). It is with this changed: {named}"
        return (
            f"the gradient at the known inputs is not the dump's ({off}), nor with another order, mode, reduction, "
            "labels, sign, scale, clip, standardisation, kind, local steps, momentum 0.9 or Adam. Left are other "
            "weights (a random initialisation must be the same), another model or loss, momentum or an adaptive "
            "optimiser (with other settings, or steps from before), augmented inputs, dropout, or more records"
        )


def diagnose(case: Case, truth: Split) -> Diagnosis:
    """Recompute the gradient at ``truth``; where it isn't the dump's, find the fewest changes with which it is.

    Tried are: the order of tensors (reversed, sorted by name, and any assignment among equal shapes), train or eval
    mode, sum or mean, labels (any, where the loss is linear in them), sign, factors, weight decay, the standardisation
    of ``x``, gradient or update and the local steps, each alone, then two of mode, standardisation, steps and labels;
    last, momentum and Adam.

    Raises:
        ConfigError: if the model has no gradient at ``truth``.
    """
    recipe = declared(case, truth.x, truth.y)
    vector, gradient = case.dump.vector(), recompute(case, recipe)
    if gradient is None:
        raise no_gradient(case, recipe)
    fit, error = Fit.of(case), None
    if vector is not None:
        seen = vector.double() * case.unit
        there = expected(case, gradient.double(), seen)
        error = float((there - seen).norm()) / fit.length
        if fit(seen, there):
            return Diagnosis("hidden by noise" if fit.tolerance >= HIDDEN else "agrees", error, fit.tolerance)
    return Diagnosis("differs", error, fit.tolerance, search(case, recipe, fit))
