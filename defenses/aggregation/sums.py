"""A cohort's weighted sum, from which means are made."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from privbench.benchmarks.federation.server import RoundContext
from privbench.benchmarks.federation.update import PIECE, Update
from privbench.defenses.aggregation.rule import empty


@dataclass
class Sum:
    """A weighted sum in float64, so that the result doesn't depend on how a cohort was split among workers.

    Args:
        context: of the round.
        total: summed vectors, ``(d,)``; ``None`` of nobody.
        weight: summed weights.
        records: summed records.
        extras: summed further tensors.
    """

    context: RoundContext
    total: Tensor | None = None
    weight: float = 0.0
    records: int = 0
    extras: dict[str, Tensor] = field(default_factory=dict)

    def add(self, update: Update, scale: float = 1.0) -> None:
        weight = float(update.records) if self.context.weighting == "records" else 1.0
        if self.total is None:
            self.total = torch.zeros(update.vector.shape, dtype=torch.float64)
        for total, part in zip(self.total.split(PIECE), update.vector.split(PIECE), strict=True):
            total.add_(part, alpha=weight * scale)
        self.weight += weight
        self.records += update.records
        for name, value in update.extras.items():
            self.extras[name] = self.extras.get(name, torch.zeros_like(value, dtype=torch.float64)) + weight * value

    def mean(self, normaliser: float | None = None) -> Update:
        if self.total is None:
            return empty(self.context)
        by = normaliser or self.weight
        vector = torch.cat([(part / by).to(torch.float32) for part in self.total.split(PIECE)])
        extras = {name: (value / by).to(torch.float32) for name, value in self.extras.items()}
        return Update(vector, self.context.layout, self.context.kind, self.records, extras)
