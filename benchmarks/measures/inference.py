"""What is inferred from a run beside its records: the interface of audits and of membership inference."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privbench.attacks.inference.canaries import Canaries
from privbench.benchmarks.tasks.task import Split
from privbench.defenses.accounting.accountant import round_up
from privbench.defenses.accounting.history import Uncovered
from privbench.defenses.accounting.plan import ClientPlan
from privbench.defenses.accounting.wording import RECEIPT_READER

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
        adjacency: what its neighbours differ in; ``None`` where nothing is stated.
    """

    unit: str | None
    epsilon: float
    delta: float | None
    history: Sequence[tuple[float, float, int]] = ()
    adjacency: str | None = None

    @property
    def stated(self) -> Row:
        """The claim's part of an empirical epsilon's row."""
        # No setting here accounts for more clients or records than there are.
        of = {"proven": self.epsilon if isfinite(self.epsilon) else None, "adjacency": self.adjacency}
        return {**of, "simulated_population": False}


def claim(federation: "Federation", ledger: list[dict[str, Any]], adversary: str) -> Claim:
    """What the run's plan states against ``adversary`` after the rounds in ``ledger``."""
    stated = federation.plan.statements(ledger) if federation.plan else []
    by_adversary = {s["adversary"]: s for s in stated}
    for name in _covering(federation, adversary):
        if (statement := by_adversary.get(name)) is not None:
            epsilon = inf if statement["epsilon"] is None else statement["epsilon"]
            return Claim(statement["unit"], epsilon, statement["delta"], statement["history"], statement["adjacency"])
    unit = federation.plan.unit if federation.plan else None
    return Claim(unit, inf, stated[0]["delta"] if stated else None)


def _covering(federation: "Federation", adversary: str) -> tuple[str, ...]:
    """Whose claims hold against ``adversary`` as well, first of all its own.

    A client gets models, and the receipts where there are some; of noise that clients add it knows its own, which has
    to be left out of what is counted on. An operator that crafts models reads as much as one that doesn't, and what
    clients do before they send holds whatever model they start from.
    """
    plan = federation.plan
    if adversary == "participant" and not (isinstance(plan, ClientPlan) and not plan.tolerates(1)):
        return adversary, RECEIPT_READER, "model_recipient"
    if adversary == "active_operator" and federation.defense.channel.plaintext:
        return adversary, "server_operator"
    return (adversary,)


def of_record(federation: "Federation", claimed: Claim) -> Claim:
    """What a claim says of a single record.

    Another record in its place makes a client's update u some other u', both within C but up to 2 C apart, whereas
    neighbours by add_remove or zero_out differ by one update of at most C: a record has the client-level mechanism's
    epsilon for replacement. It is infinite where the accountant has no proof for that.
    """
    plan = federation.plan
    if claimed.unit != "client" or not isinstance(plan, ClientPlan):
        return claimed
    found = replace(claimed, unit="record", adjacency="replace")
    if claimed.adjacency == "replace" or not isfinite(claimed.epsilon):
        return found
    assert claimed.delta is not None  # a finite epsilon has one
    terms = replace(plan.guarantee.terms(plan.facts.sampling), adjacency="replace")
    try:
        value = terms.epsilon([((q, sigma), times) for q, sigma, times in claimed.history], claimed.delta)
    except Uncovered:
        value = inf
    return replace(found, epsilon=round_up(value) if isfinite(value) else inf)


def verdict(epsilon: float, claimed: Claim, adversary: str) -> Row:
    """What the row of an audit's lower bound says beside the proven epsilon: above it, a bug was found.

    For bounds that hold with their confidence alone: canaries are in or out by coins that the audit threw.
    """
    if epsilon <= claimed.epsilon:
        return {}
    said = f"epsilon is at least {epsilon:.3g} against {adversary}, and {claimed.epsilon:.3g} is claimed"
    return {"status": "violated", "reason": f"{said}: the mechanism or its accounting has a bug"}


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
