"""The server's side of a round: state, optimisers, and the pipeline that a channel runs where it ends."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from privbench.benchmarks.build import require
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.spans import span
from privbench.benchmarks.federation.update import Layout, Update
from privbench.benchmarks.federation.view import RoundView

if TYPE_CHECKING:
    from privbench.defenses.accounting.plan import Plan
    from privbench.defenses.aggregation.rule import Rule
    from privbench.defenses.aggregation.sums import Sum
    from privbench.defenses.release.release import Release


@dataclass
class ServerState:
    """All that the server carries from round to round: one object, checkpointed whole.

    Args:
        round: last finished round, 0 before the first.
        model: global model, shape ``(layout.size,)``, float32.
        optimizer, rule, release, channel: what these keep between rounds, by name.
        clients: what each client itself keeps between rounds, by client; here because this process simulates them.
        ledger: privacy history, one entry for each attempt at a round.
        cohorts: how many clients answered, by round.
        views: rounds that an adversary keeps, by adversary, for attacks that look back.
        scores: what an audit has added up of its canaries, ``(m,)`` by adversary.
        invited: rounds that each client was invited to, where their number or distance is limited.
        average: of the rounds' models, ``(layout.size,)``, where there is one.
        per_sample: the way of computing clipped gradients that was chosen where the run began.
    """

    round: int
    model: Tensor
    optimizer: dict[str, Any] = field(default_factory=dict)
    rule: dict[str, Any] = field(default_factory=dict)
    release: dict[str, Any] = field(default_factory=dict)
    channel: dict[str, Any] = field(default_factory=dict)
    clients: dict[int, dict[str, Any]] = field(default_factory=dict)
    ledger: list[dict[str, Any]] = field(default_factory=list)
    cohorts: list[int] = field(default_factory=list)
    views: dict[str, list[RoundView]] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)
    invited: dict[int, list[int]] = field(default_factory=dict)
    average: Tensor | None = None
    per_sample: str | None = None

    def averaged(self, decay: float) -> None:
        """Take the round's model into the average; in the first rounds it forgets faster, to be near the model."""
        if not decay:
            return
        if self.average is None:
            self.average = self.model.clone()
        else:
            self.average.lerp_(self.model, 1 - min(decay, (1 + self.round) / (10 + self.round)))


class ServerOptimizer(Protocol):
    """Turns an aggregate into a step of the global model. It is post-processing of what was released."""

    def step(self, model: Tensor, aggregate: Update, state: dict[str, Any], learning_rate: float) -> Tensor:
        """The next global model, shape ``(d,)``.

        Args:
            model: current model, ``(d,)``.
            aggregate: gradient or update; buffers are always plain differences.
            state: this optimiser's own; changed in place.
            learning_rate: the clients', which scales a shared gradient.
        """
        ...


@dataclass(frozen=True)
class ServerSGD:
    """Gradient descent on the pseudo-gradient (minus the mean update), with momentum (FedAvgM, Hsu et al. 2019).

    ``learning_rate=1, momentum=0`` is FedAvg; with shared gradients it is FedSGD at the clients' learning rate.
    """

    learning_rate: float = 1.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        require(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "must be positive")
        require(0 <= self.momentum < 1, "momentum", self.momentum, "in [0, 1)")

    def step(self, model: Tensor, aggregate: Update, state: dict[str, Any], learning_rate: float) -> Tensor:
        direction = _direction(aggregate, learning_rate)
        p = aggregate.layout.trainable
        if self.momentum:
            state["momentum"] = state.get("momentum", torch.zeros(p)) * self.momentum + direction[:p]
            direction[:p] = state["momentum"]
        direction[:p] *= self.learning_rate
        return model + direction


@dataclass(frozen=True)
class _Adaptive:
    """Adaptive federated optimisation (Reddi et al. 2021, Algorithm 2), without bias correction as there.

    Args:
        learning_rate: eta.
        beta1, beta2: decay of the first and second moment, in [0, 1).
        tau: degree of adaptivity, > 0; the second moment starts at tau^2.
    """

    learning_rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        require(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "must be positive")
        require(0 <= self.beta1 < 1, "beta1", self.beta1, "in [0, 1)")
        require(0 <= self.beta2 < 1, "beta2", self.beta2, "in [0, 1)")
        require(0 < self.tau < math.inf, "tau", self.tau, "must be positive")

    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        raise NotImplementedError

    def step(self, model: Tensor, aggregate: Update, state: dict[str, Any], learning_rate: float) -> Tensor:
        direction = _direction(aggregate, learning_rate)
        p = aggregate.layout.trainable
        delta = direction[:p]
        m = state.get("m", torch.zeros(p)) * self.beta1 + delta * (1 - self.beta1)
        v = self.second_moment(state.get("v", torch.full((p,), self.tau**2)), delta.square())
        state.update(m=m, v=v)
        # Buffers are averaged, never preconditioned: a running variance has no gradient and would turn negative.
        direction[:p] = self.learning_rate * m / (v.sqrt() + self.tau)
        return model + direction


@dataclass(frozen=True)
class ServerAdam(_Adaptive):
    """FedAdam."""

    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        return self.beta2 * v + (1 - self.beta2) * squared


@dataclass(frozen=True)
class ServerYogi(_Adaptive):
    """FedYogi."""

    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        return v - (1 - self.beta2) * squared * torch.sign(v - squared)


def _direction(aggregate: Update, learning_rate: float) -> Tensor:
    """Where the aggregate points, a copy: the update, or minus the learning rate times the gradient."""
    direction = aggregate.vector.clone()
    if aggregate.kind == "gradient":
        direction[: aggregate.layout.trainable] *= -learning_rate
    return direction


@dataclass(frozen=True)
class RoundContext:
    """What the server knows of a round before any message comes in.

    Args:
        seed: the run's seed (seeded noise is drawn from it).
        round: from 1.
        invited: clients drawn for the round.
        expected: expected cohort size, the fixed normaliser of private means.
        weighting: ``records`` or ``equal``.
        layout: of all vectors.
        kind: what clients share.
        learning_rate: the clients'.
        plan: the privacy plan, if the defense has one.
        watched: clients whose updates an adversary keeps, out of those that its view shows.
        crafted: models that an active operator made for single clients, by client.
        attempt: at the round, from 1, where each draws its own cohort and batches.
    """

    seed: int
    round: int
    invited: tuple[int, ...]
    expected: float
    weighting: str
    layout: Layout
    kind: Any
    learning_rate: float
    plan: "Plan | None"
    watched: frozenset[int]
    crafted: Mapping[int, Tensor] = field(default_factory=dict)
    attempt: int = 1


@dataclass(frozen=True)
class Released:
    """What leaves the channel.

    Args:
        model: the next model, ``(d,)``.
        extras: the aggregate's further tensors, after the release station.
        aggregate: after the release station; ``None`` where the channel shows the model alone.
        costs: what the channel itself took in the round, by metric name (seconds, bytes).
        refused: messages that the channel refused, by the refusal's name; ``None`` for a channel that refuses none.
        cohort: who is in the sum; ``None``: all who answered.
    """

    model: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    aggregate: Update | None = None
    costs: Mapping[str, float] = field(default_factory=dict)
    refused: Mapping[str, int] | None = None
    cohort: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Pipeline:
    """Aggregation, release and server optimiser, run where the channel ends."""

    rule: "Rule"
    release: "Release"
    optimizer: ServerOptimizer

    def run(self, updates: Iterable[Update], state: ServerState, context: RoundContext) -> Released:
        """Consume the cohort's updates in client order and step the model; ``state``'s parts change in place."""
        with span("rule"):
            aggregate = self.rule.combine(updates, state.rule, context)
        return self._released(aggregate, state, context)

    def run_sum(
        self,
        total: "Sum",
        state: ServerState,
        context: RoundContext,
        cohort: tuple[int, ...],
        costs: Mapping[str, float],
    ) -> Released:
        """The same from the cohort's sum alone; the rule is a :class:`~privbench.defenses.aggregation.SumRule`.

        Args:
            cohort, costs: as in :class:`Released`.
        """
        rule: Any = self.rule
        with span("rule"):
            aggregate = rule.of_sum(total)
        released = self._released(aggregate, state, context)
        return replace(released, cohort=cohort, costs=costs)

    def _released(self, aggregate: Update, state: ServerState, context: RoundContext) -> Released:
        noise = stream(context.seed, "release", context.round)
        with span("release"):
            aggregate = self.release.release(aggregate, state.release, context, noise)
        with span("server_step"):
            model = self.optimizer.step(state.model, aggregate, state.optimizer, context.learning_rate)
        return Released(model, aggregate.extras, aggregate)
