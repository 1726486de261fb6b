"""Rules that hold a whole cohort: what comes before any of them, and what it makes of their answers."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from privbench.benchmarks.build import require
from privbench.benchmarks.federation.server import RoundContext
from privbench.benchmarks.federation.update import Update
from privbench.benchmarks.shares import at_most
from privbench.defenses.aggregation import geometry, screen
from privbench.defenses.aggregation.mixing import Mixing
from privbench.defenses.aggregation.rule import Diverged, empty

if TYPE_CHECKING:
    from privbench.defenses.accounting.plan import Facts


@dataclass(frozen=True)
class Cohort:
    """The updates that passed the screen.

    Args:
        matrix: ``(n, d)``.
        clients: who sent each row.
        records: that they claim, ``(n,)`` float64.
        screened: clients whose update holds NaN or infinity, or whose norm is absurd.
        mixing: ``(k, n)``: the rule works on ``mixing @ matrix``; ``None``: on the matrix.
    """

    matrix: Tensor
    clients: tuple[int, ...]
    records: Tensor
    screened: tuple[int, ...] = ()
    mixing: Tensor | None = None

    @classmethod
    def gather(cls, updates: Iterable[Update], context: RoundContext) -> "Cohort":
        """The cohort's matrix, filled as updates come in, so that each is held once.

        A client without a name is known by its place.
        """
        matrix = torch.empty(max(1, len(context.invited)), context.layout.size)
        clients, records = [], []
        for place, update in enumerate(updates):
            if place == len(matrix):
                matrix = torch.cat([matrix, torch.empty_like(matrix)])
            matrix[place] = update.vector
            clients.append(place if update.client is None else update.client)
            records.append(float(update.records))
        counts = torch.tensor(records, dtype=torch.float64)
        return cls(matrix[: len(clients)], tuple(clients), counts).screen()

    def screen(self) -> "Cohort":
        """Without updates that aren't finite or whose norm is absurd."""
        passed = screen.sound(geometry.norms(self.matrix))
        return self if bool(passed.all()) else self.take(torch.nonzero(passed).squeeze(1))

    def take(self, index: Tensor) -> "Cohort":
        """The rows at ``index`` (int64); the others count as screened."""
        chosen = index.tolist()
        gone = tuple(c for place, c in enumerate(self.clients) if place not in set(chosen))
        clients = tuple(self.clients[place] for place in chosen)
        return replace(
            self,
            matrix=self.matrix[index],
            clients=clients,
            records=self.records[index],
            screened=tuple(sorted((*self.screened, *gone))),
        )

    def told(self, f: int) -> int:
        """How many attackers may still be among the rows, if ``f`` were in the cohort and who was screened is one."""
        return max(0, f - len(self.screened))

    def distances(self) -> Tensor:
        """Squared distances among the rows that the rule works on, float64."""
        squared = geometry.squared_distances(self.matrix)
        return squared if self.mixing is None else geometry.mixed_distances(squared, self.mixing)

    def combined(self, weights: Tensor) -> Tensor:
        """The rows that the rule works on, weighted by ``weights``: ``(d,)``."""
        return geometry.weighted(self.of_clients(weights), self.matrix)

    def of_clients(self, weights: Tensor) -> Tensor:
        """Weights of the clients' own updates, ``(n,)``, where the rule gave ``weights`` to the rows it works on."""
        return weights if self.mixing is None else weights @ self.mixing.to(weights)


@dataclass(frozen=True)
class Decision:
    """What a rule made of a cohort.

    Args:
        vector: ``(d,)``.
        kept: whether each client's update has a part in it, ``(n,)`` bool; ``None`` for a rule that drops nobody.
    """

    vector: Tensor
    kept: Tensor | None = None


@dataclass(frozen=True)
class CohortRule:
    """A rule that sees all updates at once, behind a screen that no NaN, infinity or absurd norm passes.

    A cohort of fewer than :attr:`least` clients changes nothing (``cohort_too_small`` in the record). Who was screened,
    and whom the rule kept, are in the result's extras, by client. No rule here bounds one client's influence in a way
    that an epsilon could rest on.

    Args:
        mixing: mixes updates before the rule sees them; ``None`` for none.
    """

    mixing: Mixing | None = field(default=None, kw_only=True)
    bounded = False

    @property
    def least(self) -> int:
        """The smallest cohort that it can decide on, screened clients included."""
        return 1

    @property
    def asking(self) -> str:
        """The setting that :attr:`least` is so large for."""
        return "f"

    def check(self, facts: "Facts") -> None:
        """Refuse a federation whose expected cohort is too small.

        Raises:
            ConfigError: naming how many it takes.
        """
        # Whoever can decide on one client can in any round: an empty one changes nothing.
        expected = max(1, at_most(1 - facts.dropout, facts.expected))
        of = f"{expected} of {facts.clients} clients are expected in a round"
        if self.mixing is not None:
            _enough(self.mixing, "defense.aggregation.mixing", expected, of)
            of += f", mixed to {self.seen(expected)}"
        _enough(self, "defense.aggregation", self.seen(expected), of)

    def seen(self, clients: int) -> int:
        """How many rows the rule works on, of so many clients."""
        return clients if self.mixing is None else self.mixing.rows(clients)

    def decide(self, cohort: Cohort, state: dict[str, Any], context: RoundContext) -> Decision:
        """The cohort's aggregate; at least one row passed the screen.

        Args:
            cohort: not to be changed.
            state: the rule's own, kept from round to round; changed in place.
        """
        raise NotImplementedError

    def combine(self, updates: Iterable[Update], state: dict[str, Any], context: RoundContext) -> Update:
        cohort = Cohort.gather(updates, context)
        everyone = len(cohort.clients) + len(cohort.screened)
        if everyone and not cohort.clients:
            raise Diverged(f"no client's update is finite in round {context.round}")
        extras = {"screened": torch.tensor(cohort.screened, dtype=torch.int64)}
        if not everyone:
            return empty(context)
        unmixable = self.mixing is not None and everyone < self.mixing.least
        if unmixable or self.seen(everyone) < self.least:
            return replace(empty(context), extras={**extras, "cohort_too_small": torch.tensor(1.0)})
        if self.mixing is not None:
            cohort = replace(cohort, mixing=self.mixing.matrix(cohort.matrix, len(cohort.screened), context))
        made = self.decide(cohort, state, context)
        if made.kept is not None:
            kept = [c for c, has in zip(cohort.clients, made.kept.tolist(), strict=True) if has]
            extras["kept"] = torch.tensor(kept, dtype=torch.int64)
        return Update(made.vector.float(), context.layout, context.kind, int(cohort.records.sum()), extras)


def _enough(station: CohortRule | Mixing, where: str, rows: int, of: str) -> None:
    """Refuse a ``station`` at the configuration's ``where`` that takes more than ``rows``."""
    asking, name = getattr(station, "asking", "f"), type(station).__name__
    told = getattr(station, asking, None)
    where, value = (where, name) if told is None else (f"{where}.{asking}", told)
    require(rows >= station.least, where, value, f"for {name} with at least {station.least}: {of}")
