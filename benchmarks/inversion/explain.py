"""What on the dump's side turns a recomputed gradient into it: order, sign, factor, clip, decay, pruning."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from privbench.benchmarks.inversion.case import Case
from privbench.benchmarks.inversion.dump import Order
from privbench.benchmarks.inversion.fit import Fit


@dataclass(frozen=True)
class Fault:
    """One thing that isn't as it was declared.

    Args:
        name: ``order``, ``mode``, ``reduction``, ``labels``, ``sign``, ``scale``, ``clip``, ``learning_rate``,
            ``standardisation``, ``kind``, ``local_steps``, ``batch_size``, ``momentum``, ``optimiser``, ``pruned`` or
            ``weight_decay``.
        found: a sentence.
        setting: arguments of ``invert`` that would be right, where there are any.
    """

    name: str
    found: str
    setting: dict[str, Any] = field(default_factory=dict)


def expected(case: Case, gradient: Tensor, seen: Tensor) -> Tensor:
    """``gradient`` after the published pruning and clip of the client's whole vector.

    Args:
        gradient: ``(layout.trainable,)`` float64.
        seen: the dump in its unit.
    """
    gradient = masked(case, gradient, seen)
    return gradient * _clipped(case, float(gradient.norm()))


def masked(case: Case, gradient: Tensor, seen: Tensor) -> Tensor:
    """``gradient`` without the entries that the client pruned, if it did."""
    return gradient * (seen != 0) if case.known.pruned else gradient


def _clipped(case: Case, length: float) -> float:
    """The factor that the published clip makes of a gradient of that norm."""
    clip = case.known.clip
    return 1.0 if clip is None or length == 0 else min(1.0, clip * abs(case.unit) / length)


def explain(case: Case, gradient: Tensor, fit: Fit) -> tuple[Fault, ...] | None:
    """Faults that make the dump of ``gradient``; ``None`` where none do.

    Args:
        gradient: recomputed, ``(layout.trainable,)`` float64, not clipped, in the unit in which the dump times
            ``case.unit`` would equal it.
        fit: what counts as equal.
    """
    given = case.dump.vector()
    if given is not None:
        found = _factor_fits(case, gradient, given.double() * case.unit, fit)
        if found is not None:
            return found
    if case.dump.named:
        return None
    for order, called in _orders(case, gradient):
        vector = case.dump.vector(order)
        if vector is None:
            continue
        found = _factor_fits(case, gradient, vector.double() * case.unit, fit)
        if found is not None:
            names = [case.public.layout.names[p] for p in order]
            said = called or f"tensors are those of {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
            return (Fault("order", said, {"order": names}), *found)
    return None


def _factor_fits(case: Case, gradient: Tensor, seen: Tensor, fit: Fit) -> tuple[Fault, ...] | None:
    kept = seen != 0
    if case.known.pruned:
        return _scaled(case, gradient * kept, seen, fit, kept)
    found = _scaled(case, gradient, seen, fit)
    cut = (~kept) & (gradient != 0)
    if found is not None or not bool(cut.any()):
        return found
    found = _scaled(case, gradient * kept, seen, replace(fit, pruned=True), kept)
    said = f"{float(cut.double().mean()):.0%} of its entries are 0 where the gradient isn't: the client pruned it"
    return None if found is None else (*found, Fault("pruned", said, {"pruned": True}))


def _scaled(case: Case, g: Tensor, s: Tensor, fit: Fit, kept: Tensor | None = None) -> tuple[Fault, ...] | None:
    if not bool(g.any()):
        return None
    factor = float(g @ s / (g @ g))
    if fit(s, factor * g):
        return _name(case, factor, g, fit)
    w = case.sent[: len(g)].double()
    w = w if kept is None else w * kept
    # s = factor g + decay w by normal equations: a least-squares solver takes seconds for millions of weights.
    gram = torch.stack([g @ g, g @ w, g @ w, w @ w]).view(2, 2)
    if float(w.norm()) == 0 or float(torch.linalg.det(gram)) <= 1e-12 * float(gram[0, 0] * gram[1, 1]):
        return None
    factor, decay = torch.linalg.solve(gram, torch.stack([g @ s, w @ s])).tolist()
    if factor == 0 or decay / factor <= 0:
        return None
    rate = decay / factor
    whole = g + rate * w
    if not fit(s, factor * whole):
        return None
    found = Fault("weight_decay", f"{rate:.3g} times the weights is in it: subtract it", {})
    return (*_name(case, factor, whole, fit), found)


def _name(case: Case, factor: float, gradient: Tensor, fit: Fit) -> tuple[Fault, ...]:
    """What it means that the dump is ``factor`` times a gradient that wasn't clipped."""
    public, whole = case.public, float(gradient.norm())
    slack = max(2 * fit.rounding / fit.length, 2e-3)

    def near(value: float) -> bool:
        return abs(factor - value) <= slack * abs(value) + fit.slack(whole)

    clipped = _clipped(case, whole)
    if near(clipped):
        return ()
    length = abs(factor) * whole / abs(case.unit)
    if case.known.clip is not None and (near(1) or 0 < factor < 1):
        above = "above" if factor > clipped else "below"
        found = f"its norm is {length:.4g}, {above} what a clip of {case.known.clip:.4g} makes of it"
        return (Fault("clip", found, {"clip": length}),)
    for sign in (1, -1):
        negative = (Fault("sign", _opposite(public.kind)),) if sign < 0 else ()
        if sign < 0 and near(-clipped):
            return negative
        for value, found in _reductions(case):
            if near(sign * value):
                return (*negative, _reduction(case, value, found))
    raw = factor / case.unit  # dump = raw * gradient
    if public.kind == "update":
        if abs(raw - 1) <= slack + fit.slack(whole) / abs(case.unit):
            return (Fault("kind", "it is a gradient, not an update", {"kind": "gradient"}),)
        if factor < 0:
            rate = -factor * public.learning_rate
            return (Fault("sign", _opposite("update")), _rate(rate))
        return (_rate(factor * public.learning_rate),)
    if factor < 0:
        found = f"it is an update, -{-factor:.4g} times the gradient"
        return (Fault("kind", found, {"kind": "update", "learning_rate": -factor}),)
    # The dump is shorter or longer than any mean or sum.
    shorter = f"; clipped to its norm? clip={length:.4g}" if factor < 1 else ""
    return (
        Fault("scale", f"it is {factor:.4g} times the mean gradient{shorter}", {"clip": length} if shorter else {}),
    )


def _reduction(case: Case, factor: float, found: str) -> Fault:
    """Of an update a factor says little: it may as well be that of the learning rate, and the smaller ones are."""
    if case.public.kind == "gradient":
        return Fault("reduction", found)
    rate = factor * case.public.learning_rate
    if factor < 1:
        return _rate(rate)
    return Fault("reduction", f"{found}; or the client's learning rate was {rate:.4g}")


def _reductions(case: Case) -> Iterator[tuple[float, str]]:
    """Factors that a loss reduction makes."""
    records, classes = case.records, case.public.classes
    if records > 1:
        yield records, f"the loss was summed over the {records} records, not averaged: divide by {records}"
        yield 1 / records, f"it was divided by the {records} records once too often"
    if case.loss.name == "mse" and classes > 1:
        yield classes, f"the squared error was summed over the {classes} outputs, not averaged"
        if records > 1:
            both = records * classes
            yield both, f"the squared error was summed over records and outputs: divide by {both}"


def _opposite(kind: str) -> str:
    return "it is the negative gradient" if kind == "gradient" else "it is w_before - w_after: give w_after - w_before"


def _rate(rate: float) -> Fault:
    return Fault("learning_rate", f"the client's was {rate:.4g}", {"learning_rate": rate})


def _orders(case: Case, gradient: Tensor) -> Iterator[tuple[Order, str]]:
    """Orders worth trying, those with a name first; then, for tensors apart, the best one among equal shapes."""
    known = case.dump.orders()
    for name, order in known.items():
        yield (
            order,
            f"tensors are {name}" if not name.startswith(("all", "biases")) else f"tensors are in the order: {name}",
        )
    if case.dump.flat:
        return
    size = [prod(s) for s in case.dump.shapes]
    parts = torch.split(gradient, size)
    tensors = [t.reshape(-1).double() * case.unit for t in case.dump.tensors]
    length = float(torch.cat(tensors).norm() / gradient.norm())
    for factor in (length, -length):
        cost = np.full((len(tensors), len(parts)), 1e30)
        for k, tensor in enumerate(tensors):
            for p, part in enumerate(parts):
                if tuple(case.dump.tensors[k].shape) == case.dump.shapes[p]:
                    cost[k, p] = float((tensor - factor * part).square().sum())
        order = linear_sum_assignment(cost)[1].tolist()
        if order != [*range(len(parts))]:
            yield order, ""
