"""The privacy plan: from one object come sampling, normaliser, clip, noise and accountant, so none changes alone."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from privbench.benchmarks.build import ConfigError, require
from privbench.benchmarks.federation.view import Known
from privbench.defenses.accounting.accountant import accountant_name, epsilon, noise_multiplier
from privbench.defenses.noise import Source

Unit = Literal["record", "client"]


@dataclass(frozen=True)
class Facts:
    """What of a federation a guarantee depends on.

    Args:
        clients, rounds: numbers of.
        participation: expected share of clients a round.
        sampling: how they are drawn.
        records: training records by client.
        batch: ``batch[c]`` is client c's expected batch size, ``steps[c]`` its local steps a round.
    """

    clients: int
    rounds: int
    participation: float
    sampling: Literal["fixed", "poisson"]
    records: tuple[int, ...]
    batch: tuple[int, ...]
    steps: tuple[int, ...]


class Plan(Protocol):
    """A privacy configuration bound to a federation.

    Attributes:
        unit: what neighbouring data sets differ in.
        clip: L2 bound C on one unit's contribution.
        noise_multiplier: noise standard deviation over C, on the sum (client level); the least over clients otherwise.
        noise_source: ``seeded`` or ``system``.
    """

    @property
    def unit(self) -> Unit: ...

    @property
    def clip(self) -> float: ...

    @property
    def noise_multiplier(self) -> float: ...

    @property
    def noise_source(self) -> Source: ...

    def charge(self, round: int, cohort: Iterable[int]) -> dict[str, Any]:
        """The ledger's entry for one round."""
        ...

    def statements(self, ledger: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What is guaranteed against whom after the rounds in ``ledger``, one statement an adversary."""
        ...

    def known(self, source: str, client: int) -> Known:
        """What the federation publishes of its noise on a client's ``update``, the ``aggregate`` or the ``release``."""
        ...


@dataclass(frozen=True)
class _Guarantee:
    """What both units' configurations share.

    Args:
        epsilon: target; the noise multiplier is calibrated to it over all rounds. Give this or ``noise_multiplier``.
        noise_multiplier: noise standard deviation over the clip; 0 clips without noise (epsilon is infinite).
        delta: in (0, 1), below one over the number of units.
        clip: L2 bound on one unit's contribution, > 0.
        noise_source: ``seeded`` is reproducible and simulated, ``system`` cryptographic. Sampling is seeded in
            both, so an epsilon that rests on amplification by sampling stays simulated.
    """

    delta: float
    clip: float
    epsilon: float | None = None
    noise_multiplier: float | None = None
    noise_source: Source = "seeded"
    unit: ClassVar[Unit]

    def __post_init__(self) -> None:
        require(0 < self.delta < 1, "delta", self.delta, "in (0, 1)")
        require(0 < self.clip < math.inf, "clip", self.clip, "must be positive")
        require(
            (self.epsilon is None) != (self.noise_multiplier is None),
            "epsilon",
            self.epsilon,
            f"give either epsilon or noise_multiplier (now {self.noise_multiplier})",
        )
        require(self.epsilon is None or 0 < self.epsilon < math.inf, "epsilon", self.epsilon, "must be positive")
        z = self.noise_multiplier
        require(z is None or 0 <= z < math.inf, "noise_multiplier", z, "at least 0")

    def _sigma(self, rate: float, steps: int) -> float:
        if self.noise_multiplier is not None:
            return self.noise_multiplier
        assert self.epsilon is not None
        try:
            return noise_multiplier(self.epsilon, self.delta, rate, steps)
        except ValueError as error:
            raise ConfigError("epsilon", self.epsilon, str(error)) from None

    def _check_delta(self, units: int, what: str) -> None:
        require(self.delta < 1 / units, "delta", self.delta, f"must be below 1/{what} = {1 / units:.3g}")

    def _statement(self, adversary: str, value: float, amplified: bool, **more: Any) -> dict[str, Any]:
        return {
            "unit": self.unit,
            "adjacency": "add_remove",
            "adversary": adversary,
            "epsilon": _round_up(value) if math.isfinite(value) else None,
            "delta": self.delta,
            "clip": self.clip,
            "noise_source": self.noise_source,
            # Sampling is drawn from the run's seed, and whoever knows the sample has no amplification.
            "simulated": self.noise_source == "seeded" or amplified,
            **more,
        }


@dataclass(frozen=True)
class ClientLevel(_Guarantee):
    """(epsilon, delta) for a whole client, by a central Gaussian (DP-FedAvg, McMahan et al. 2018).

    Client sampling is Poisson with q = participation, updates weigh equally, and the clipped sum is divided by the
    expected cohort size. It holds for whoever sees released models; a plaintext channel's server sees the updates.
    """

    unit: ClassVar[Unit] = "client"

    def bind(self, facts: Facts) -> "ClientPlan":
        """The plan for a federation.

        Raises:
            ConfigError: if sampling contradicts it, or delta isn't below one over the number of clients.
        """
        require(
            facts.sampling == "poisson" or facts.participation == 1,
            "sampling",
            facts.sampling,
            "this guarantee is amplified by Poisson sampling: set federation.sampling=poisson (or null)",
        )
        self._check_delta(facts.clients, "clients")
        sigma = self._sigma(facts.participation, facts.rounds)
        return ClientPlan(self, facts, sigma)


@dataclass(frozen=True)
class ClientPlan:
    """:class:`ClientLevel` bound to a federation."""

    guarantee: ClientLevel
    facts: Facts
    noise_multiplier: float
    unit: Unit = field(default="client", init=False)

    @property
    def clip(self) -> float:
        return self.guarantee.clip

    @property
    def noise_source(self) -> Source:
        return self.guarantee.noise_source

    def charge(self, round: int, cohort: Iterable[int]) -> dict[str, Any]:
        return {"round": round, "sampling_rate": self.facts.participation, "noise_multiplier": self.noise_multiplier}

    def statements(self, ledger: list[dict[str, Any]]) -> list[dict[str, Any]]:
        history = [((e["sampling_rate"], e["noise_multiplier"]), 1) for e in ledger]
        common = {
            "mechanism": "Poisson-sampled Gaussian on the sum of clipped updates, noise added once by the server",
            "sampling": "poisson",
            "sampling_rate": self.facts.participation,
            "noise_multiplier": self.noise_multiplier,
            "rounds": len(ledger),
            "accountant": accountant_name(history, self.guarantee.delta),
        }
        value = epsilon(history, self.guarantee.delta)
        sampled = self.facts.participation < 1
        seen = {"why": "the server reads every update before it is clipped and noised"}
        return [
            self.guarantee._statement("model_recipient", value, sampled, **common),
            self.guarantee._statement("server_operator", math.inf, sampled, **common, **seen),
        ]

    def known(self, source: str, client: int) -> Known:
        if source == "update":
            # The server reads updates as they were sent: what it adds later is no protection against it.
            return Known()
        std = self.noise_multiplier * self.clip / (self.facts.participation * self.facts.clients)
        return Known(clip=self.clip, noise_std=std)


@dataclass(frozen=True)
class RecordLevel(_Guarantee):
    """(epsilon, delta) for one record, by DP-SGD on each client (Abadi et al. 2016).

    Every client calibrates its own noise to its own sampling rate, so that small clients get the same guarantee. The
    server sees who takes part, so client sampling amplifies nothing, and every client is counted as taking part in
    every round; the realised number is no larger.
    """

    unit: ClassVar[Unit] = "record"

    def bind(self, facts: Facts) -> "RecordPlan":
        """The plan for a federation.

        Raises:
            ConfigError: if delta isn't below one over the number of records.
        """
        self._check_delta(sum(facts.records), "records")
        rates = tuple(b / n for b, n in zip(facts.batch, facts.records, strict=True))
        sigmas = tuple(self._sigma(q, s * facts.rounds) for q, s in zip(rates, facts.steps, strict=True))
        return RecordPlan(self, facts, rates, sigmas)


@dataclass(frozen=True)
class RecordPlan:
    """:class:`RecordLevel` bound to a federation; ``rates`` and ``sigmas`` are by client."""

    guarantee: RecordLevel
    facts: Facts
    rates: tuple[float, ...]
    sigmas: tuple[float, ...]
    unit: Unit = field(default="record", init=False)

    @property
    def clip(self) -> float:
        return self.guarantee.clip

    @property
    def noise_multiplier(self) -> float:
        return min(self.sigmas)

    @property
    def noise_source(self) -> Source:
        return self.guarantee.noise_source

    def charge(self, round: int, cohort: Iterable[int]) -> dict[str, Any]:
        return {"round": round, "clients": sorted(cohort)}

    def statements(self, ledger: list[dict[str, Any]]) -> list[dict[str, Any]]:
        every = zip(self.rates, self.sigmas, self.facts.steps, strict=True)
        kinds = {((q, sigma), steps * len(ledger)) for q, sigma, steps in every}
        # The weakest client's; a tie is broken by the history, so that the statement is always the same.
        value, weakest = max((epsilon([kind], self.guarantee.delta), kind) for kind in kinds)
        taken: dict[int, int] = {}
        for entry in ledger:
            for client in entry["clients"]:
                taken[client] = taken.get(client, 0) + 1
        common = {
            "mechanism": "DP-SGD on each client: Poisson-sampled Gaussian on clipped per-record gradients",
            "sampling": "poisson",
            "sampling_rate": max(self.rates),
            "noise_multiplier": self.noise_multiplier,
            "rounds": len(ledger),
            "participations_counted": len(ledger),
            "participations_realised": max(taken.values(), default=0),
            "accountant": accountant_name([weakest], self.guarantee.delta),
            "not_covered": "the number of records of each client, which weights and sampling rates show",
        }
        sampled = min(self.rates) < 1
        return [self.guarantee._statement(a, value, sampled, **common) for a in ("server_operator", "model_recipient")]

    def known(self, source: str, client: int) -> Known:
        stds = [z * self.clip / b for z, b in zip(self.sigmas, self.facts.batch, strict=True)]
        if source == "update":
            return Known(clip=self.clip, step_noise_std=stds[client])
        # A mean over the expected cohort, weighted by records.
        expected = self.facts.participation * sum(self.facts.records)
        parts = (n / expected * s for n, s in zip(self.facts.records, stds, strict=True))
        total = math.sqrt(self.facts.participation * sum(p * p for p in parts))
        return Known(clip=self.clip, step_noise_std=total)


Privacy = ClientLevel | RecordLevel


def _round_up(value: float, digits: int = 4) -> float:
    return math.ceil(value * 10**digits) / 10**digits
