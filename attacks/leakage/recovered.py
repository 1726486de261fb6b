"""Which ratios of a first layer's gradient are records: tests that need no truth, and what fills the gaps."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from privbench.attacks.leakage.attack import AttackFailed
from privbench.attacks.leakage.first_layer import FirstLayer

FAINT = 1e-5
"""Bias gradients below this share of the largest are rounding of float32."""

ALIKE = 1e-2
"""Ratios no further apart than this share of their length are taken for the same."""


@dataclass(frozen=True)
class Recovered:
    """Records found, and what is left of the gradient when they are subtracted.

    Args:
        x: ``(k, n)`` float64.
        y: ``(k,)`` int64.
        weight, bias: what is left, ``(H, n)`` and ``(H,)``.
        scale: largest bias gradient before anything was subtracted.
    """

    x: Tensor
    y: Tensor
    weight: Tensor
    bias: Tensor
    scale: float

    @property
    def ratios(self) -> tuple[Tensor, Tensor]:
        """``weight_i / bias_i`` of the units that are left, ``(m, n)``, and the units, ``(m,)``."""
        units = torch.nonzero(self.bias.abs() > FAINT * self.scale).squeeze(1)
        return self.weight[units] / self.bias[units, None], units


def peel(layer: FirstLayer, weight: Tensor, bias: Tensor, records: int, tolerance: float) -> Recovered:
    """Records that some unit has for itself, each subtracted so that others become alone.

    Args:
        weight, bias: the layer's gradient, ``(H, n)`` and ``(H,)``.
        records: how many there are at most.
        tolerance: see :class:`~privbench.attacks.leakage.linear.LinearInversion`.
    """
    none = torch.zeros(0, dtype=torch.int64, device=bias.device)
    found = Recovered(weight[:0], none, weight, bias, float(bias.abs().max()))
    left, singular, _ = torch.linalg.svd(weight, full_matrices=False)
    rank = min(records, int((singular > 1e-6 * singular[0]).sum()))
    if rank >= len(bias):
        return found  # every vector lies in the column space: nothing tells records from mixtures
    basis = left[:, :rank]
    while len(found.y) < records:
        more = _alone(layer, found, basis, tolerance, records - len(found.y))
        if more is None:
            break
        found = more
    return found


def _alone(layer: FirstLayer, found: Recovered, basis: Tensor, tolerance: float, most: int) -> Recovered | None:
    ratios, units = found.ratios
    if not len(units):
        return None
    off, labels = outside(layer, ratios, found.bias[units], units, basis)
    x, y, weight, bias = found.x, found.y, found.weight, found.bias
    taken = 0
    for i in off.argsort().tolist():
        if off[i] > tolerance or taken == most:
            break
        if len(x) and bool((distance(ratios[i], x) < ALIKE).any()):
            continue
        slopes = layer.slopes(ratios[i : i + 1], labels[i : i + 1])[0]
        unit = int(units[i])
        if not slopes[unit]:
            continue
        # Its weight in the batch, from its own unit: a known scale (1/B) would presume that nothing was clipped.
        column = slopes * (found.bias[unit] / slopes[unit])
        weight, bias = weight - column[:, None] * ratios[i], bias - column
        x, y, taken = torch.cat([x, ratios[i : i + 1]]), torch.cat([y, labels[i : i + 1]]), taken + 1
    return Recovered(x, y, weight, bias, found.scale) if taken else None


def outside(layer: FirstLayer, x: Tensor, bias: Tensor, units: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """By how much slopes of ``x`` leave the gradient's column space, as a share of their length in [0, 1], and the
    class for which they leave it least; both ``(M,)``.

    Of two classes both do where one does, with opposite signs: the class must have the sign of the bias gradient.

    Args:
        x: ratios, ``(M, n)``.
        bias: the bias gradients in them, ``(M,)``.
        units: whose they are, ``(M,)``.
        basis: of the column space, ``(H, r)``.
    """
    parts, size = [], len(layer.blocks(x)[0])
    for part, sign, unit in zip(layer.blocks(x), bias.sign().split(size), units.split(size), strict=True):
        slopes = layer.by_class(part)
        own = slopes.gather(2, unit[:, None, None].expand(-1, slopes.shape[1], 1)).squeeze(2)
        length = slopes.norm(dim=-1).clamp_min(torch.finfo(slopes.dtype).tiny)
        share = (slopes - slopes @ basis @ basis.T).norm(dim=-1) / length
        # A record that activates nothing lies in every space and says nothing; its sign is no class's either.
        parts.append(torch.where(own.sign() == sign[:, None], share, 1.0).min(1))
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])


def distance(one: Tensor, others: Tensor) -> Tensor:
    """Relative distance of ``one`` ``(n,)`` from each of ``others`` ``(m, n)``."""
    return (others - one).norm(dim=1) / one.norm().clamp_min(torch.finfo(one.dtype).tiny)


def fill(found: Recovered, records: int, box: tuple[Tensor, Tensor] | None, labels: Callable[[], Tensor]) -> Recovered:
    """``records`` records: those found, then the most promising of the ratios that are left, each once.

    Ratios come first on which most units agree, then those inside the valid range, then those with the largest bias
    gradient. Where no ratio is left, the training mean stands in.

    Args:
        box: lowest and highest valid values, ``(n,)`` each.
        labels: of all records, where they can be inferred; those that found ones don't have go to the rest.
    """
    short = records - len(found.y)
    if short <= 0:
        return Recovered(found.x[:records], found.y[:records], found.weight, found.bias, found.scale)
    x = torch.cat([found.x, _promising(found, short, box)])
    x = torch.cat([x, x.new_zeros(records - len(x), x.shape[1])])
    try:
        rest = labels().tolist()
    except AttackFailed:
        rest = []
    for label in found.y.tolist():
        if label in rest:
            rest.remove(label)
    rest = (rest + [0] * short)[:short]
    y = torch.cat([found.y, torch.tensor(rest, dtype=found.y.dtype, device=found.y.device)])
    return Recovered(x, y, found.weight, found.bias, found.scale)


def _promising(found: Recovered, most: int, box: tuple[Tensor, Tensor] | None) -> Tensor:
    ratios, units = found.ratios
    if not len(units):
        return found.x[:0]
    length = ratios.norm(dim=1).clamp_min(torch.finfo(ratios.dtype).tiny)
    votes = (torch.cdist(ratios, ratios) < ALIKE * length[:, None]).sum(1)
    valid = torch.ones_like(votes, dtype=torch.bool)
    if box is not None:
        slack = 0.01 * (box[1] - box[0])
        valid = ((ratios >= box[0] - slack) & (ratios <= box[1] + slack)).all(1)
    size = found.bias[units].abs() / found.scale
    order = sorted(range(len(units)), key=lambda i: (int(votes[i]), bool(valid[i]), float(size[i])), reverse=True)
    chosen = found.x
    for i in order:
        if len(chosen) - len(found.x) == most:
            break
        if not len(chosen) or not bool((distance(ratios[i], chosen) < ALIKE).any()):
            chosen = torch.cat([chosen, ratios[i : i + 1]])
    return chosen[len(found.x) :]
