"""Robbing the Fed (Fowl, Geiping, Czaja, Goldblum and Goldstein, ICLR 2022): a malicious server's imprint block."""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from privbench.attacks.leakage.attack import AttackFailed, Reconstruction, check
from privbench.attacks.leakage.first_layer import FirstLayer, finish
from privbench.attacks.leakage.labels import infer
from privbench.attacks.leakage.linear import box
from privbench.attacks.leakage.observe import Observation
from privbench.attacks.leakage.recovered import Recovered, distance, fill
from privbench.benchmarks.build import require
from privbench.benchmarks.federation.view import Public, View

CERTAIN = 1e-2
"""Relative error of a bin's bias gradient up to which a bin is taken to hold a record for itself."""


@dataclass(frozen=True)
class Imprint:
    """The operator sends a model that sorts records by brightness into bins, and reads each bin that one record is in.

    The first layer's rows all become ``h(x)``, the mean of a standardised input, and its biases ``-q_i``, the quantiles
    of a normal distribution that the operator presumes (section 3). Columns of the next linear layer become alike, so
    that a record has the same slope in every unit that it activates: then ``dL/dW_i - dL/dW_(i+1)`` over
    ``dL/db_i - dL/db_(i+1)`` is the mean, weighted by slopes, of records with ``q_i < h(x) <= q_(i+1)``, and exact for
    one record. It needs a model that begins with ``nn.Linear``, ReLU, ``nn.Linear`` on the flattened input:
    ``model=mlp``, or any model behind ``model=imprint``'s block. It finds records one by one in an aggregate as well,
    if all clients of it got the model.

    A bin's record is certain where the slope computed anew from it is the bin's; those come first, then bins inside the
    valid range, then those of larger slopes. Two records in one bin come out as their mean.

    Args:
        location, scale: mean and standard deviation of ``h`` that are presumed, of standardised inputs; from public
            data of the same kind by :func:`brightness`.
    """

    location: float = 0.0
    scale: float = 0.15

    def __post_init__(self) -> None:
        require(-inf < self.location < inf, "location", self.location, "a finite number")
        require(0 < self.scale < inf, "scale", self.scale, "positive and finite")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"model_modification", "batch_size"})

    def craft(self, public: Public, model: Tensor) -> Tensor:
        """The vector to send in place of ``model``, ``(layout.size,)``: two layers differ from it.

        Raises:
            AttackFailed: if the model doesn't begin as the attack needs it.
        """
        layer = FirstLayer.of(public, model)
        if layer.second is None:
            raise AttackFailed(
                f"the first layer, {layer.name!r}, isn't followed by ReLU and another nn.Linear: the imprint block"
                " is missing (model=imprint puts one in front)"
            )
        sent = model.clone()
        views = public.layout.views(sent)
        weight, bias = (views[f"{layer.name}.{part}" if layer.name else part] for part in ("weight", "bias"))
        weight.fill_(1 / weight.shape[1])
        bias.copy_(-self.thresholds(len(bias)))
        following = views[f"{layer.second}.weight"]
        # One of its own columns, shortened by their number: logits stay about as large as they were.
        following.copy_((following[:, :1] / following.shape[1]).expand_as(following))
        return sent

    def thresholds(self, bins: int) -> Tensor:
        """``q`` ``(bins,)``, ascending: quantiles ``0.5/bins, 1.5/bins, ...`` of the presumed distribution."""
        share = (torch.arange(bins, dtype=torch.float64) + 0.5) / bins
        return (self.location + self.scale * torch.special.ndtri(share)).float()

    def reconstruct(self, view: View, observation: Observation, generator: torch.Generator) -> Reconstruction:
        """See :class:`~privbench.attacks.leakage.attack.Attack`."""
        check(view, observation, self.needs)
        public, records = view.public, observation.records
        layer = FirstLayer.of(public, observation.model)
        weight, bias = (torch.cat([g, torch.zeros_like(g[:1])]) for g in layer.part(observation.gradient))
        # Rows are in the order of their thresholds; beyond the last nothing is subtracted.
        weight, bias = weight[:-1] - weight[1:], bias[:-1] - bias[1:]
        scale = float(bias.abs().max())
        if not scale:
            raise AttackFailed("no unit of the imprint block is active: every record is darker than its bins")
        none = torch.zeros(0, dtype=torch.int64, device=bias.device)
        found = _certain(layer, Recovered(weight[:0], none, weight, bias, scale), records)
        found = fill(found, records, box(public), lambda: infer(public, observation, generator))
        return finish(public, observation, found.x, found.y)


def _certain(layer: FirstLayer, bins: Recovered, records: int) -> Recovered:
    """Bins whose slope is that of the one record which they would hold, ``1/records`` of it, the surest first."""
    ratios, units = bins.ratios
    parts = []
    for part, unit in zip(layer.blocks(ratios), units.split(len(layer.blocks(ratios)[0])), strict=True):
        slopes = layer.by_class(part) / records
        own = slopes.gather(2, unit[:, None, None].expand(-1, slopes.shape[1], 1)).squeeze(2)
        parts.append(((own - bins.bias[unit, None]) / bins.bias[unit, None]).abs().min(1))
    off, labels = torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])
    x, y = bins.x, bins.y
    for i in off.argsort().tolist():
        if off[i] > CERTAIN or len(y) == records:
            break
        if not len(x) or not bool((distance(ratios[i], x) < 1e-4).any()):
            x, y = torch.cat([x, ratios[i : i + 1]]), torch.cat([y, labels[i : i + 1]])
    return Recovered(x, y, bins.weight, bins.bias, bins.scale)


def brightness(x: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of ``h`` over public, standardised inputs ``(n, *shape)``, n >= 2."""
    h = x.flatten(1).mean(1)
    return float(h.mean()), float(h.std())
