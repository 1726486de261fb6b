"""A one-run audit as a measure: empirical epsilon beside the proven one, by adversary."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import isfinite, prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from privbench.attacks.inference.audit import Finding, audit
from privbench.attacks.inference.canaries import Canaries, Planted
from privbench.attacks.inference.power import Power, power
from privbench.benchmarks.build import require
from privbench.benchmarks.federation.update import Kind, Layout
from privbench.benchmarks.federation.view import ADVERSARIES, RoundView
from privbench.benchmarks.measures.inference import Claim, Inference, Row, Scene, claim, losses, verdict

if TYPE_CHECKING:
    from privbench.benchmarks.federation.federation import Federation

OPERATORS = ("server_operator", "active_operator")
LEAST = 20
"""Canaries that a layer needs for an audit of its own."""
UNCLAIMED = 0.25
"""Share of canaries that are guessed where no epsilon is claimed."""


@dataclass(frozen=True)
class Audit(Inference):
    """An audit of the run's own mechanism (Steinke, Nasr and Jagielski 2023).

    A gradient canary's score is its inner product with what the adversary sees, added up over rounds: its client's
    update where that is readable, else the difference of released models. A canary record's score is by how much its
    loss fell, which to first order is the same with its gradient. All audits of a run share its confidence
    (Bonferroni).

    Args:
        canaries: that are in the training.
        adversaries: whose views are scored.
        confidence: of all of the run's lower bounds together.
        layers: also audit each layer's gradient canaries by themselves: noise that is missing on one layer shows there.
        guesses: in each audit, even; ``None`` takes those with most power against half of the claimed noise.
        delta: of the lower bound where no epsilon is claimed.
    """

    canaries: Canaries = field(default_factory=Canaries)
    adversaries: tuple[str, ...] = ("server_operator", "model_recipient")
    confidence: float = 0.95
    layers: bool = True
    guesses: int | None = None
    delta: float = 1e-5

    def __post_init__(self) -> None:
        require(0 < self.confidence < 1, "confidence", self.confidence, "in (0, 1)")
        require(0 <= self.delta < 1, "delta", self.delta, "in [0, 1)")
        seeing = [a for a in ADVERSARIES if a != "network"]
        for adversary in self.adversaries:
            require(adversary in seeing, "adversaries", adversary, f"one of {', '.join(seeing)}")
        different = len(set(self.adversaries)) == len(self.adversaries) > 0
        require(different, "adversaries", list(self.adversaries), "different ones, at least one")
        k, m = self.guesses, self.canaries.count
        require(k is None or (2 <= k <= m and k % 2 == 0), "guesses", k, f"null, or even from 2 to {m}")

    @property
    def planted(self) -> Canaries:
        return self.canaries

    @property
    def reads_updates(self) -> bool:
        return any(a in OPERATORS for a in self.adversaries)

    def check(self, federation: "Federation") -> None:
        mean = federation.weighting == "equal" or federation.planted is None or federation.planted.unit == "record"
        require(mean, "federation.weighting", federation.weighting, "equal, where canaries are clients")

    def rows(self, scene: Scene) -> Iterator[Row]:
        federation, state = scene.federation, scene.finished.state
        planted = federation.planted
        assert planted is not None
        start = None if planted.records is None else _Losses(federation, planted)
        for adversary in self.adversaries:
            seen = scene.finished.views[adversary].rounds[-1]
            reads = adversary in OPERATORS and federation.defense.channel.plaintext
            found = score(planted, seen, reads, federation.settings.local.share, start)
            state.scores[adversary] = state.scores.get(adversary, torch.zeros(len(found), dtype=torch.float64)) + found
        if not scene.last:
            return
        included, number = planted.included.numpy(), scene.finished.round
        context = {"round": number, "unit": planted.unit, "form": self.canaries.form}
        yield {"metric": "canaries", **context, "value": len(included), "included": int(included.sum())}
        parts = self._parts(planted, federation.layout)
        for adversary in self.adversaries:
            claimed = claim(federation, state.ledger, adversary)
            yield from self._found(state.scores[adversary].numpy(), included, parts, claimed, adversary, context)
        artifact = {f"scores_{a}": state.scores[a].numpy() for a in self.adversaries}
        scene.record.artifact("audit", {"included": included, "entries": planted.entries.numpy(), **artifact})

    def _parts(self, planted: Planted, layout: Layout) -> dict[str, np.ndarray]:
        """Numbers of the canaries in each audit, by what is audited."""
        parts = {"all": np.arange(len(planted.included))}
        return parts | (by_layer(planted, layout) if self.layers and planted.records is None else {})

    def _found(
        self,
        scores: np.ndarray,
        included: np.ndarray,
        parts: dict[str, np.ndarray],
        claimed: Claim,
        adversary: str,
        context: Row,
    ) -> Iterator[Row]:
        audits = len(self.adversaries) * len(parts)
        confidence = 1 - (1 - self.confidence) / audits
        delta = self.delta if claimed.delta is None or not isfinite(claimed.epsilon) else claimed.delta
        best: tuple[str, Finding] | None = None
        powers: dict[int, Power] = {}
        for name, numbers in parts.items():
            m = len(numbers)
            if m not in powers:
                powers[m] = self._power(m, claimed, delta, confidence)
            found = audit(scores[numbers], included[numbers], powers[m].guesses, delta, confidence)
            if best is None or found.epsilon > best[1].epsilon:
                best = name, found
        assert best is not None
        part, found = best
        row = {**context, "adversary": adversary, "method": "canaries", "delta": delta, "part": part}
        numbers = {"canaries": found.canaries, "guesses": found.guesses, "correct": found.correct, "audits": audits}
        row |= {"value": found.epsilon, "confidence": self.confidence, **numbers}
        yield {"metric": "empirical_epsilon", **row, **claimed.stated, **verdict(found.epsilon, claimed, adversary)}
        power_row = {"metric": "audit_power", **context, "adversary": adversary, "bug": "half the noise"}
        if claimed.history and isfinite(claimed.epsilon):
            yield {**power_row, "value": powers[len(parts["all"])].power}
        else:
            yield {**power_row, "value": None, "status": "not_applicable", "reason": "no epsilon is claimed"}

    def _power(self, m: int, claimed: Claim, delta: float, confidence: float) -> Power:
        fixed = None if self.guesses is None else min(self.guesses, m - m % 2)
        if not isfinite(claimed.epsilon) or not claimed.history:
            return Power(fixed or 2 * max(1, round(UNCLAIMED * m / 2)), 0.0)
        return power(m, claimed.history, claimed.epsilon, delta, confidence, fixed)


def by_layer(planted: Planted, layout: Layout, least: int = LEAST) -> dict[str, np.ndarray]:
    """Numbers of the gradient canaries in each layer that has ``least`` of them, by its name."""
    layers: dict[str, list[Tensor]] = {}
    start = 0
    for name, shape in zip(layout.names[: layout.parameters], layout.shapes, strict=False):
        end = start + prod(shape)
        layers.setdefault(name.rpartition(".")[0] or name, []).append(
            torch.nonzero((planted.entries >= start) & (planted.entries < end)).squeeze(1)
        )
        start = end
    found = {name: torch.cat(numbers).numpy() for name, numbers in layers.items()}
    return {name: numbers for name, numbers in found.items() if len(numbers) >= least}


class _Losses:
    """Losses of canary records under flat models."""

    def __init__(self, federation: "Federation", planted: Planted):
        assert planted.records is not None
        self.records, self.layout = planted.records, federation.layout
        self.model = copy.deepcopy(federation.model)

    def __call__(self, vector: Tensor, numbers: Tensor) -> Tensor:
        self.layout.write(vector, self.model)
        return losses(self.model, self.records.take(numbers))


def score(
    planted: Planted, seen: RoundView, reads: bool, share: Kind, loss: Callable[[Tensor, Tensor], Tensor] | None
) -> Tensor:
    """One round's scores, ``(m,)`` float64; 0 where the adversary saw nothing of a canary.

    Args:
        seen: the adversary's view of the round.
        reads: it reads clients' own updates, so that other clients' stay out of a score.
        share: what clients send.
        loss: ``loss(model, numbers)`` of canary records; ``None`` for gradient canaries.
    """
    found = torch.zeros(len(planted.included), dtype=torch.float64)
    if not reads:
        if seen.sent is None or seen.released is None:
            return found
        every = torch.arange(len(found))
        if loss is not None:
            return loss(seen.sent, every) - loss(seen.released, every)
        # The model moves against gradients, and with updates.
        sign = -1.0 if planted.unit == "record" or share == "gradient" else 1.0
        return sign * _along(planted, every, seen.released - seen.sent)
    for client, update in seen.updates.items():
        mine = torch.nonzero(planted.owner == client).squeeze(1)
        if not len(mine):
            continue
        step = update.vector if share == "update" else -update.vector
        if loss is None:
            sign = -1.0 if planted.unit == "record" and share == "update" else 1.0
            found[mine] = sign * _along(planted, mine, update.vector)
        elif seen.sent is not None:
            found[mine] = loss(seen.sent, mine) - loss(seen.sent + step, mine)
    return found


def _along(planted: Planted, numbers: Tensor, vector: Tensor) -> Tensor:
    """Inner products of ``vector`` with the canaries' directions, float64."""
    return (planted.signs[numbers] * vector[planted.entries[numbers]]).double()
