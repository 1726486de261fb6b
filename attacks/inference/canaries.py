"""Canaries: records or clients of the audit's own, each in the training or not by a fair coin."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from privbench.benchmarks.build import require
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.tasks.task import Split

Unit = Literal["record", "client"]
Form = Literal["gradient", "record"]
LONGEST = 1e6
"""Of a gradient canary, over the clip: longer ones would not be finite in 32-bit floating point, and count as zero."""


@dataclass(frozen=True)
class Canaries:
    """How many canaries of which kind (Steinke, Nasr and Jagielski 2023, Section 6).

    Args:
        count: m.
        form: ``gradient``, a canary's gradient (a client's whole update) is one signed coordinate, another for each
            canary (the white-box Dirac canary of Nasr et al. 2023): their directions are orthogonal, and each lies in
            one layer. ``record``, a training record under a wrong label, trained on as any other.
        unit: what is in or out; ``None`` is the claim's unit, and records without a claim.
        length: of a gradient canary before it is clipped, over the clip: above 1, so that clipping is audited too.
    """

    count: int = 1000
    form: Form = "gradient"
    unit: Unit | None = None
    length: float = 10.0

    def __post_init__(self) -> None:
        require(self.count >= 2, "count", self.count, "at least 2")
        require(1 <= self.length <= LONGEST, "length", self.length, f"from 1, the clip, to {LONGEST:g}")

    def plant(self, unit: Unit, clients: int, parameters: int, train: Split, classes: int, seed: int) -> "Planted":
        """Draw coins, owners and canaries, each from a stream of its own.

        Args:
            unit: of the audit.
            clients: honest ones. Canary records are theirs in turn; canary clients come after them.
            parameters: trainable ones.
            train: records that canaries under a wrong label are copies of.
            classes: labels there are.

        Raises:
            ConfigError: if there are more canaries than directions or records.
        """
        m, number = self.count, torch.arange(self.count)
        most = parameters if self.form == "gradient" else len(train)
        what = "parameters" if self.form == "gradient" else "training records"
        require(m <= most, "count", m, f"at most {most}, the {what}")
        included = torch.rand(m, generator=stream(seed, "audit/coins")) < 0.5
        owner = number % clients if unit == "record" else clients + number
        draws = stream(seed, "audit/canaries")
        entries = torch.randperm(most, generator=draws)[:m]
        signs = torch.where(torch.rand(m, generator=draws) < 0.5, -1.0, 1.0)
        records = None
        if self.form == "record":
            copies = train.take(entries)
            shift = torch.randint(1, classes, (m,), generator=draws)
            records = Split(copies.x, (copies.y + shift) % classes, copies.group)
        return Planted(unit, clients, included, owner, entries, signs, self.length, records)


@dataclass(frozen=True)
class Planted:
    """The canaries of one run.

    Args:
        unit: ``record`` or ``client``.
        clients: honest clients; canary clients are numbered after them.
        included: ``(m,)`` bool, the coins.
        owner: ``(m,)`` int64, whose record it is, or which client.
        entries: ``(m,)`` int64, each canary's coordinate of the flat vector of parameters.
        signs: ``(m,)``, 1 or -1.
        length: of a gradient canary, over the clip.
        records: of canaries that are records; ``None`` for gradients.
    """

    unit: Unit
    clients: int
    included: Tensor
    owner: Tensor
    entries: Tensor
    signs: Tensor
    length: float
    records: Split | None

    @property
    def extra(self) -> int:
        """Canary clients."""
        return len(self.owner) if self.unit == "client" else 0

    @property
    def stated(self) -> dict[str, Any]:
        """What a record says of them: how many of what were in the training."""
        m, there = len(self.included), int(self.included.sum())
        return {"unit": self.unit, "form": "record" if self.records else "gradient", "count": m, "included": there}

    def of(self, client: int) -> "Own":
        """A client's canaries."""
        mine = torch.nonzero(self.owner == client).squeeze(1)
        kept = None if self.records is None else self.records.take(mine)
        return Own(self.included[mine], self.entries[mine], self.signs[mine], self.length, kept)

    def enrolled(self, records: int, client: int) -> int:
        """How many records a client enrols with: canaries count, whether they are in or out."""
        return records + (int((self.owner == client).sum()) if self.unit == "record" else 0)


@dataclass(frozen=True)
class Own:
    """One client's canaries, numbered after its own records."""

    included: Tensor
    entries: Tensor
    signs: Tensor
    length: float
    records: Split | None

    def __len__(self) -> int:
        return len(self.included)

    def direction(self, drawn: Tensor, size: int) -> Tensor:
        """The sum of these canaries' unit gradients, ``(size,)``; those that are out add nothing.

        Args:
            drawn: ``(k,)`` int64, numbers among this client's canaries.
        """
        there = drawn[self.included[drawn]]
        return torch.zeros(size).index_add_(0, self.entries[there], self.signs[there])

    def parted(self, index: Tensor, records: int) -> tuple[Tensor, Tensor]:
        """A batch's records that are trained on, and its gradient canaries, by number; who is out is in neither."""
        canary = index >= records
        there = torch.zeros_like(canary)
        there[canary] = self.included[index[canary] - records]
        if self.records is not None:
            return index[~canary | there], index[:0]
        return index[~canary], index[there] - records

    def joined(self, records: Split) -> Split:
        """A client's records with canaries behind them (nothing for gradient canaries)."""
        if self.records is None:
            return records
        group = None
        if records.group is not None and self.records.group is not None:
            group = torch.cat([records.group, self.records.group])
        return Split(torch.cat([records.x, self.records.x]), torch.cat([records.y, self.records.y]), group)

    def drawn(self, numbers: Tensor, parameters: int) -> "Drawn":
        """The gradient canaries of one batch, by number."""
        return Drawn(self.direction(numbers, parameters), len(numbers), self.length)


@dataclass(frozen=True)
class Drawn:
    """Gradient canaries that a batch drew.

    Args:
        direction: the sum of their unit gradients, ``(layout.trainable,)``.
        number: how many.
        length: of each before it is clipped, over the clip.
    """

    direction: Tensor
    number: int
    length: float
