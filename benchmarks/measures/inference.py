"""What is inferred from a run beside its records: the interface of audits and of membership inference."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privbench.attacks.inference.canaries import Canaries
from privbench.benchmarks.tasks.task import Split

if TYPE_CHECKING:
    from privbench.benchmarks.experiment import Prepared
    from privbench.benchmarks.federation.client import ClientSide
    from privbench.benchmarks.federation.engine import Engine
    from privbench.benchmarks.federation.federation import Federation
    from privbench.benchmarks.federation.loop import Round
    from privbench.benchmarks.results.record import Record

Row = dict[str, Any]
BATCH = 512
"""Records evaluated at once; it bounds memory and changes no number."""


@dataclass(frozen=True)
class Scene:
    """A finished round, and what stands around it.

    Args:
        prepared: the run.
        finished: the round.
        side, engine: where clients run.
        record: takes artifacts.
    """

    prepared: "Prepared"
    finished: "Round"
    side: "ClientSide"
    engine: "Engine"
    record: "Record"

    @property
    def federation(self) -> "Federation":
        return self.prepared.federation

    @property
    def last(self) -> bool:
        """Whether it is the run's last round, by its settings or by its privacy budget."""
        return self.finished.last


@dataclass(frozen=True)
class Inference:
    """Which inference is made in a run."""

    @property
    def planted(self) -> Canaries | None:
        """Canaries that have to be in the training; ``None`` for none."""
        return None

    @property
    def reads_updates(self) -> bool:
        """Whether an adversary's view has to keep clients' updates."""
        return False

    def check(self, federation: "Federation") -> None:
        """Refuse a federation that it can't be made in.

        Raises:
            ConfigError: naming what would be right.
        """

    def rows(self, scene: Scene) -> Iterator[Row]:
        """Metric rows after a round."""
        yield from ()


@dataclass(frozen=True)
class Claim:
    """What is proven against one adversary; infinite epsilon where nothing is.

    Args:
        unit, epsilon, delta: of the guarantee.
        history: its steps, (q, sigma, times).
    """

    unit: str | None
    epsilon: float
    delta: float | None
    history: Sequence[tuple[float, float, int]] = ()


def claim(federation: "Federation", ledger: list[dict[str, Any]], adversary: str) -> Claim:
    """What the run's plan states against ``adversary`` after the rounds in ``ledger``."""
    stated = federation.plan.statements(ledger) if federation.plan else []
    for statement in stated:
        if statement["adversary"] == adversary:
            epsilon = inf if statement["epsilon"] is None else statement["epsilon"]
            return Claim(statement["unit"], epsilon, statement["delta"], statement["history"])
    unit = federation.plan.unit if federation.plan else None
    return Claim(unit, inf, stated[0]["delta"] if stated else None)


def verdict(epsilon: float, claimed: Claim, adversary: str) -> Row:
    """What the row of an empirical epsilon says of the proven one; above it, a bug was found."""
    row: Row = {"proven": claimed.epsilon if claimed.epsilon < inf else None}
    if epsilon > claimed.epsilon:
        said = f"epsilon is at least {epsilon:.3g} against {adversary}, and {claimed.epsilon:.3g} is claimed"
        row |= {"status": "violated", "reason": f"{said}: the mechanism or its accounting has a bug"}
    return row


@torch.no_grad()
def logits(model: nn.Module, records: Split) -> Tensor:
    """``(n, classes)`` float64, in evaluation mode."""
    was = [m for m in model.modules() if m.training]
    device = next((p.device for p in model.parameters()), records.x.device)
    model.eval()
    try:
        return torch.cat([model(x.to(device)).cpu().double() for x in records.x.split(BATCH)])
    finally:
        for module in was:
            module.training = True


def losses(model: nn.Module, records: Split) -> Tensor:
    """Cross entropy of each record, ``(n,)`` float64."""
    return F.cross_entropy(logits(model, records), records.y, reduction="none")
