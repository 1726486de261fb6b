"""Membership inference on the released final model, with shadow federations where the attack needs them."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from privbench.attacks.inference.membership import (
    LiRA,
    LossThreshold,
    MembershipAttack,
    empirical_epsilon,
    halves,
    roc,
    scaled,
)
from privbench.benchmarks.build import require
from privbench.benchmarks.federation.client import ClientSide
from privbench.benchmarks.federation.federation import Federation
from privbench.benchmarks.federation.processes import Serial
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.server import ServerState
from privbench.benchmarks.measures.inference import Inference, Row, Scene, claim, logits, of_record
from privbench.benchmarks.tasks.models.architecture import make
from privbench.benchmarks.tasks.task import Data, Split
from privbench.defenses.accounting import Facts, Plan
from privbench.defenses.aggregation import Diverged
from privbench.defenses.channel import Plaintext, Setup

if TYPE_CHECKING:
    from privbench.benchmarks.experiment import Experiment

ADVERSARY = "model_recipient"
RATES = {0.01: 100, 0.001: 10_000}
"""False positive rates, and how many non-members each needs."""


@dataclass(frozen=True)
class Membership(Inference):
    """Tell training records from test records by the released model.

    A shadow model is trained as the run's: same loop, settings, defense and number of records, another seed. Half of
    the candidates take the places of the candidate members; the other training records stay, so the adversary is one
    that knows all records but the candidates.

    Args:
        attack: scores candidates; the loss threshold stands beside it as the baseline.
        shadows: shadow models, even and at least 4; 0 for an attack that needs none.
        candidates: members, and as many non-members, at most.
        confidence: of the empirical epsilon.
    """

    attack: MembershipAttack = field(default_factory=LiRA)
    shadows: int = 16
    candidates: int = 500
    confidence: float = 0.95

    def __post_init__(self) -> None:
        enough = self.shadows >= 4 and self.shadows % 2 == 0
        needs = self.attack.needs_shadows
        require(enough or not needs, "shadows", self.shadows, f"even, at least 4: {self.attack.name} needs them")
        require(needs or self.shadows == 0, "shadows", self.shadows, f"0: {self.attack.name} needs none")
        require(self.candidates >= 10, "candidates", self.candidates, "at least 10")
        require(0 < self.confidence < 1, "confidence", self.confidence, "in (0, 1)")

    def check(self, federation: Federation) -> None:
        hint = "none: members are single records, while the run claims a guarantee for all of a patient's together"
        patients = federation.plan is not None and federation.plan.unit == "patient"
        require(not patients, "attack", self.attack.name, hint)
        hint = "one that needs no shadows, such as loss_threshold: shadow models are trained without the poisoner"
        honest = federation.poisoner is None or not self.attack.needs_shadows
        require(honest, "attack", self.attack.name, hint)
        test = len(federation.task.raw.test)
        require(test >= 10, "candidates", self.candidates, f"a task with at least 10 test records, not {test}")

    def rows(self, scene: Scene) -> Iterator[Row]:
        if not scene.last:
            return
        federation, experiment = scene.federation, scene.prepared.experiment
        pool, members = pooled(federation.task.data, self.candidates, experiment.seed)
        model = copy.deepcopy(federation.model)
        federation.layout.write(scene.finished.released.model, model)
        target = scaled(logits(model, pool.records).numpy(), pool.records.y.numpy())
        n, rng = len(members), np.random.default_rng(stream(experiment.seed, "shadows").initial_seed())
        inside = halves(n, self.shadows, rng) if self.shadows else np.zeros((0, n), dtype=bool)
        jobs = [Shadow(experiment, pool, inside[i], i) for i in range(self.shadows)]
        found = list(scene.engine.map(train_shadow, jobs)) if jobs else []
        context: Row = {"round": scene.finished.round, "adversary": ADVERSARY}
        if any(f is None for f in found):
            reason = f"{sum(f is None for f in found)} of {len(found)} shadow models diverged"
            yield {"metric": "membership_auc", **context, "value": None, "status": "failed", "reason": reason}
            return
        shadows = np.stack([f for f in found if f is not None]) if found else np.zeros((0, n))
        arrays = {"members": members, "shadows": shadows, "inside": inside}
        for attack in dict.fromkeys((self.attack, LossThreshold())):
            scores = attack.score(target, shadows, inside)
            baseline = attack != self.attack
            suffix = "_loss_threshold" if baseline else ""
            yield from _measured(scores, members, {**context, "method": attack.name}, suffix)
            curve = roc(scores, members)
            arrays |= {f"fpr{suffix}": curve.fpr, f"tpr{suffix}": curve.tpr, f"scores{suffix}": scores}
            if not baseline:
                yield self._epsilon(scene, scores, members)
        scene.record.artifact("membership", arrays)

    def _epsilon(self, scene: Scene, scores: np.ndarray, members: np.ndarray) -> Row:
        """Beside what is proven, without a verdict: who is a member was decided by no coin, so it is no bound."""
        federation = scene.federation
        claimed = of_record(federation, claim(federation, scene.finished.state.ledger, ADVERSARY))
        delta = claimed.delta or 0.0
        value = empirical_epsilon(scores, members, delta, self.confidence)
        row: Row = {"metric": "empirical_epsilon", "round": scene.finished.round, "adversary": ADVERSARY}
        row |= {"value": value, "method": self.attack.name, "unit": "record", "delta": delta}
        return {**row, "confidence": self.confidence, **claimed.stated}


def _measured(scores: np.ndarray, members: np.ndarray, context: Row, suffix: str) -> Iterator[Row]:
    curve, others = roc(scores, members), int((~members).sum())
    more = {**context, "members": int(members.sum()), "non_members": others}
    values = {"auc": curve.auc, "advantage": curve.advantage, "balanced_accuracy": (1 + curve.advantage) / 2}
    for name, value in values.items():
        yield {"metric": f"membership_{name}{suffix}", **more, "value": value}
    for rate, least in RATES.items():
        name = f"membership_tpr_at_{100 * rate:g}_percent_fpr{suffix}"
        if others >= least:
            yield {"metric": name, **more, "value": curve.at(rate)}
        else:
            reason = f"{others} non-members: a false positive rate of {100 * rate:g}% needs {least}"
            yield {"metric": name, **more, "value": None, "status": "not_applicable", "reason": reason}


@dataclass(frozen=True)
class Pool:
    """Candidates.

    Args:
        records: members first.
        rest: indices of the other training records.
        members: indices of the members among the training records, in order.
    """

    records: Split
    rest: Tensor
    members: Tensor


def pooled(data: Data, most: int, seed: int) -> tuple[Pool, np.ndarray]:
    """At most so many members and as many non-members (test records), and which are members, ``(n,)`` bool."""
    draws = stream(seed, "membership")
    n = min(most, len(data.train), len(data.test))
    order = torch.randperm(len(data.train), generator=draws)
    inside, outside = order[:n], torch.randperm(len(data.test), generator=draws)[:n]
    a, b = data.train.take(inside), data.test.take(outside)
    # A test record joins no client's group (hospital, patient) but that of the record whose place it takes.
    records = Split(torch.cat([a.x, b.x]), torch.cat([a.y, b.y]))
    return Pool(records, order[n:], inside), np.arange(2 * n) < n


@dataclass(frozen=True)
class Shadow:
    """One shadow model's training.

    Args:
        experiment: whose federation it repeats.
        pool: candidates.
        inside: ``(n,)`` bool, those that it is trained on, half of them.
        number: names its random streams.
    """

    experiment: "Experiment"
    pool: Pool
    inside: np.ndarray
    number: int


def train_shadow(side: ClientSide, job: Shadow) -> np.ndarray | None:
    """:func:`scaled` confidence of a shadow model on all candidates, ``(n,)``; ``None`` if it diverged.

    Runs in a worker, one client after another.
    """
    federation = shadow_federation(job, side.device)
    own = federation.client_side()
    state = federation.start()
    try:
        for finished in federation.run(state, own, Serial(own)):
            state = finished.state
    except Diverged:
        return None
    federation.layout.write(state.model, federation.model)
    records = job.pool.records
    return scaled(logits(federation.model, records).numpy(), records.y.numpy())


def shadow_federation(job: Shadow, device: torch.device) -> Federation:
    """The run's federation, with the candidates of ``job`` in the places of the members, and another seed."""
    experiment, pool = job.experiment, job.pool
    data = experiment.task.data
    x, y = data.train.x.clone(), data.train.y.clone()
    chosen = torch.from_numpy(np.nonzero(job.inside)[0])
    x[pool.members], y[pool.members] = pool.records.x[chosen], pool.records.y[chosen]
    given = Given(Data(Split(x, y, data.train.group), data.test, data.spec))
    task = replace(experiment.task, source=given, records=None)
    seed = stream(experiment.seed, "shadow", 0, job.number).initial_seed()
    channel, out = experiment.defense.channel, experiment.federation.dropout
    late = channel.dropout
    if not isinstance(channel, Plaintext):
        channel = Unsealed(channel.plaintext, channel.sums_only, channel.grid)
    return Federation(
        # Who drops out of the run's channel doesn't answer here, so that sums hold as much noise.
        settings=replace(experiment.federation, dropout=out + late - out * late),
        task=task,
        model=make(experiment.model, task.spec, seed),
        defense=replace(experiment.defense, channel=channel),
        seed=seed,
        device=device,
        architecture=experiment.model,
    )


@dataclass(frozen=True)
class Unsealed:
    """In place of another channel: the same messages, with the same noise, in the open.

    What a model's recipient gets doesn't depend on how updates travelled, but on what was sent: noise on the channel's
    grid, or shares of noise that count on a sum. A round that the channel would refuse for too few clients is done.

    Args:
        plaintext, sums_only, grid: as that channel has it.
    """

    plaintext: bool
    sums_only: bool
    grid: float | None
    apart: bool = field(default=False, init=False)
    isolation: str = field(default="same_process", init=False)
    dropout: float = field(default=0.0, init=False)

    def check(self, facts: Facts, weighting: str, plan: Plan | None) -> None:
        pass

    def start(self, setup: Setup, state: ServerState) -> Plaintext:
        return Plaintext()


@dataclass(frozen=True, eq=False)
class Given:
    """A data set that is in memory already."""

    data: Data

    def load(self, data_dir: str | None) -> Data:
        return self.data
