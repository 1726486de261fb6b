"""Guarantees for a record, or for all records of a patient, by DP-SGD on each client."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from privbench.benchmarks.build import require
from privbench.benchmarks.federation.view import Known
from privbench.defenses.accounting.guarantee import Facts, Guarantee, Unit
from privbench.defenses.accounting.history import Step
from privbench.defenses.accounting.wording import local_mechanism, not_covered
from privbench.defenses.noise import Source


@dataclass(frozen=True)
class RecordLevel(Guarantee):
    """(epsilon, delta) for one record, or one patient, by DP-SGD on each client (Abadi et al. 2016).

    Every client calibrates its own noise to its own sampling rate, so that small clients get the same guarantee. The
    server sees who takes part, so client sampling amplifies nothing, and every client is counted as taking part in
    every round, or in as many as it is capped at; the realised number is no larger.

    Args:
        unit: ``patient`` draws, clips and counts patients instead of records: a step's gradient of a patient is the
            mean over its records. Needs a data set that says whose each record is, and a partition that keeps a
            patient's records together.
        per_patient: records of a patient in one step at most, drawn anew in each.
    """

    unit: Literal["record", "patient"] = "record"
    per_patient: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.unit in ("record", "patient"), "unit", self.unit, "record or patient")
        require(self.per_patient >= 1, "per_patient", self.per_patient, "at least 1")

    def bind(self, facts: Facts) -> "RecordPlan":
        """The plan for a federation.

        Raises:
            ConfigError: if delta isn't below one over the number of units.
        """
        self.check_delta(sum(facts.units), f"{self.unit}s")
        rates = tuple(b / n for b, n in zip(facts.batch, facts.units, strict=True))
        sigmas = tuple(self.sigma(q, s * facts.counted(facts.rounds)) for q, s in zip(rates, facts.steps, strict=True))
        plan = RecordPlan(self, facts, rates, sigmas)
        self.check_budget(plan.spent(1))
        return plan


@dataclass(frozen=True)
class RecordPlan:
    """:class:`RecordLevel` bound to a federation; ``rates`` and ``sigmas`` are by client."""

    guarantee: RecordLevel
    facts: Facts
    rates: tuple[float, ...]
    sigmas: tuple[float, ...]

    @property
    def unit(self) -> Unit:
        return self.guarantee.unit

    @property
    def clip(self) -> float:
        return self.guarantee.clip

    @property
    def noise_multiplier(self) -> float:
        return min(self.sigmas)

    @property
    def update_multiplier(self) -> float:
        return self.noise_multiplier

    @property
    def count_noise(self) -> float:
        return 0.0

    @property
    def noise_source(self) -> Source:
        return self.guarantee.noise_source

    def spent(self, rounds: int, lost: int = 0) -> set[tuple[Step, int]]:
        """What so many rounds, and ``lost`` attempts beside them, cost each kind of client's records."""
        counted, every = self.facts.counted(rounds, lost), zip(self.rates, self.sigmas, self.facts.steps, strict=True)
        return {((q, sigma), steps * counted) for q, sigma, steps in every}

    def affordable(self, lost: int = 0) -> int | None:
        return self.guarantee.rounds_within(lambda n: self.spent(n, lost), self.facts.rounds)

    def charge(self, round: int, cohort: Iterable[int]) -> dict[str, Any]:
        return {"round": round, "clients": sorted(cohort)}

    def statements(self, ledger: list[dict[str, Any]]) -> list[dict[str, Any]]:
        (rate, sigma), steps = self.weakest(ledger)
        counted = self._counted(ledger)
        taken: dict[int, int] = {}
        for entry in ledger:
            for client in entry["clients"]:
                taken[client] = taken.get(client, 0) + 1
        common = {
            "mechanism": local_mechanism(self.unit),
            "sampling": "poisson",
            "sampling_rate": rate,
            "noise_multiplier": sigma,
            "rounds": len(ledger),
            "participations_counted": counted,
            "participations_realised": max(taken.values(), default=0),
            "not_covered": not_covered(self.unit),
        }
        sampled = min(self.rates) < 1
        terms, history = self.guarantee.terms(), [((rate, sigma), steps * counted)]
        adversaries = ("server_operator", "model_recipient")
        return [self.guarantee.statement(self.unit, a, terms, history, sampled, **common) for a in adversaries]

    def weakest(self, ledger: list[dict[str, Any]]) -> tuple[Step, int]:
        """A local step of the client whose records are protected least after the rounds in ``ledger``, and how many of
        them it takes in a round."""
        every = set(zip(zip(self.rates, self.sigmas, strict=True), self.facts.steps, strict=True))
        counted, terms = self._counted(ledger), self.guarantee.terms()
        # A tie is broken by the step, so that the statement is always the same.
        return max(every, key=lambda k: (terms.epsilon([(k[0], k[1] * counted)], self.guarantee.delta), k))

    def _counted(self, ledger: list[dict[str, Any]]) -> int:
        rounds = len({e["round"] for e in ledger})
        return self.facts.counted(rounds, len(ledger) - rounds)

    def known(self, source: str, client: int) -> Known:
        stds = [z * self.clip / b for z, b in zip(self.sigmas, self.facts.batch, strict=True)]
        if source == "update":
            return Known(clip=self.clip, step_noise_std=stds[client])
        # A mean over the expected cohort, weighted by records.
        expected = self.facts.rate * sum(self.facts.records)
        parts = (n / expected * s for n, s in zip(self.facts.records, stds, strict=True))
        total = math.sqrt(self.facts.rate * sum(p * p for p in parts))
        return Known(clip=self.clip, step_noise_std=total)
