"""What guarantees have in common: the facts they depend on, the interface of a plan, and their configuration."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from privbench.benchmarks.build import ConfigError, require
from privbench.benchmarks.federation.view import Known
from privbench.benchmarks.shares import cohort_size
from privbench.defenses.accounting.accountant import Terms, round_up
from privbench.defenses.accounting.calibration import noise_multiplier
from privbench.defenses.accounting.history import (
    LARGEST_EPSILON,
    MOST_STEPS,
    NOISES,
    Name,
    Sampling,
    Step,
    Uncovered,
    is_noise,
    summed,
)
from privbench.defenses.noise import Source

Unit = Literal["record", "patient", "client"]


@dataclass(frozen=True)
class Facts:
    """What of a federation a guarantee depends on.

    Args:
        clients, rounds: numbers of.
        participation: the share of clients a round that was asked for; :attr:`rate` is the one that is drawn.
        sampling: how they are drawn.
        records: training records by client.
        batch: ``batch[c]`` is client c's expected batch size, ``steps[c]`` its local steps a round.
        cap: rounds that one client takes part in at most; ``None``: in all.
        separation: of any so many rounds in a row, one client takes part in one at most.
        patients: whose records these are, by client, where steps draw patients; batches are then of patients.
        operator_reads_updates: whether whoever runs the server reads single updates.
        dropout: probability that an invited client never answers.
    """

    clients: int
    rounds: int
    participation: float
    sampling: Literal["fixed", "poisson"]
    records: tuple[int, ...]
    batch: tuple[int, ...]
    steps: tuple[int, ...]
    operator_reads_updates: bool = True
    dropout: float = 0.0
    patients: tuple[int, ...] | None = None
    cap: int | None = None
    separation: int = 1

    @property
    def rate(self) -> float:
        """Probability that a client is in a round's cohort: a fixed one has a whole number of clients."""
        return self.participation if self.sampling == "poisson" else self.expected / self.clients

    @property
    def expected(self) -> float:
        """Expected cohort size K."""
        fixed = self.sampling == "fixed"
        return float(cohort_size(self.participation, self.clients)) if fixed else self.participation * self.clients

    def counted(self, rounds: int, lost: int = 0) -> int:
        """Of so many rounds, and ``lost`` attempts beside them, those that any one client may have taken part in.

        Attempts count towards a cap as rounds do. Who was in a lost one is kept out of the next where rounds are apart.
        """
        apart = -(-rounds // self.separation) + lost
        return apart if self.cap is None else min(apart, self.cap)

    def spent(self, invited: Mapping[int, Sequence[int]], round: int) -> set[int]:
        """Who may not take part in ``round``, by the rounds that each was invited to before, once for each attempt."""
        most, since = math.inf if self.cap is None else self.cap, round - self.separation
        apart = self.separation > 1
        return {c for c, at in invited.items() if len(at) >= most or (apart and at and at[-1] > since)}

    @property
    def limited(self) -> str | None:
        """The setting that keeps clients out who have taken part, if any."""
        if self.separation > 1:
            return "min_separation"
        return None if self.cap is None else "max_participations"

    @property
    def units(self) -> tuple[int, ...]:
        """What local steps draw from, by client: records, or patients."""
        return self.records if self.patients is None else self.patients


class Plan(Protocol):
    """A privacy configuration bound to a federation.

    Attributes:
        unit: what neighbouring data sets differ in.
        clip: L2 bound C on one unit's contribution.
        noise_multiplier: noise standard deviation over C. At the client level on the sum, or on each client's message
            under local noise; at the record level on a step's sum, the least over clients.
        update_multiplier: the same for the sum of updates alone, where a part of the privacy goes elsewhere.
        count_noise: standard deviation of the noise on the number of clients below an adapted clip; 0 without one.
        noise_source: ``seeded`` or ``system``.
    """

    def affordable(self, lost: int = 0) -> int | None:
        """How many rounds the budget allows beside ``lost`` attempts at some; ``None`` without a budget."""
        ...

    @property
    def unit(self) -> Unit: ...

    @property
    def clip(self) -> float: ...

    @property
    def noise_multiplier(self) -> float: ...

    @property
    def update_multiplier(self) -> float: ...

    @property
    def count_noise(self) -> float: ...

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


def fresh(plan: Plan | None) -> bool:
    """Whether noise comes from the system, so that another attempt at a round or a run is another release."""
    return plan is not None and plan.noise_source == "system"


def redrawn(plan: Plan | None, attempt: int) -> int:
    """By which attempt at a round its cohort and batches are drawn, from 1.

    Seeded noise is the same in each, which then is no release of its own. Fresh noise on the same sample would cost
    more than a second sampled step: it takes a sample of its own.
    """
    return attempt if fresh(plan) else 1


@dataclass(frozen=True)
class Guarantee:
    """What both units' configurations share.

    Args:
        epsilon: target; the noise multiplier is calibrated to it over all rounds. Give this or ``noise_multiplier``.
        noise_multiplier: noise standard deviation over the clip; 0 clips without noise (epsilon is infinite).
        delta: in (0, 1), below one over the number of units.
        clip: L2 bound on one unit's contribution, > 0.
        noise_source: ``seeded`` is reproducible and simulated, ``system`` cryptographic. Sampling is seeded in
            both, so an epsilon that rests on amplification by sampling stays simulated.
        adjacency: what neighbours differ in: a unit that is there or not, or one in place of another (2 C apart).
        budget: epsilon that the run may spend against whom its noise is calibrated: it stops before a round that would
            exceed it, attempts that were lost included. ``None``: it does all its rounds and states what they cost.
        accountant: that calibrates and states. Cohorts of a fixed size need ``rdp`` with ``adjacency=replace``.
    """

    delta: float
    clip: float
    epsilon: float | None = None
    noise_multiplier: float | None = None
    noise_source: Source = "seeded"
    adjacency: Literal["add_remove", "replace"] = "add_remove"
    accountant: Name = "pld"
    budget: float | None = None

    def __post_init__(self) -> None:
        require(0 < self.delta < 1, "delta", self.delta, "in (0, 1)")
        require(0 < self.clip < math.inf, "clip", self.clip, "must be positive, and a number")
        require(
            (self.epsilon is None) != (self.noise_multiplier is None),
            "epsilon",
            self.epsilon,
            f"give either epsilon or noise_multiplier (now {self.noise_multiplier})",
        )
        hint = f"must be positive, and at most {LARGEST_EPSILON:g}"
        require(self.epsilon is None or 0 < self.epsilon <= LARGEST_EPSILON, "epsilon", self.epsilon, hint)
        z = self.noise_multiplier
        require(z is None or is_noise(z), "noise_multiplier", z, NOISES)
        require(self.budget is None or 0 < self.budget < math.inf, "budget", self.budget, "positive, or null")

    def terms(self, sampling: Sampling = "poisson") -> Terms:
        """What this guarantee's epsilon is of, for units that are drawn in this way."""
        return Terms(self.accountant, self.adjacency, sampling)

    def sigma(self, rate: float, steps: int, sampling: Sampling = "poisson") -> float:
        """The noise multiplier for so many steps at a sampling rate: the one given, or calibrated to epsilon.

        Raises:
            ConfigError: if no noise reaches epsilon, or the accountant has no proof for this sampling.
        """
        terms = self.terms(sampling)
        require(steps <= MOST_STEPS, "rounds", steps, f"at most {MOST_STEPS} noisy steps of one client in all rounds")
        try:
            terms.epsilon([((rate, 1.0), 1)], self.delta)
        except Uncovered as error:
            drawn = "" if rate == 1 else f" and sampling={sampling}"
            why = f"it has no proof for adjacency={self.adjacency}{drawn}: {error}"
            raise ConfigError("accountant", self.accountant, why) from None
        if self.noise_multiplier is not None:
            return self.noise_multiplier
        assert self.epsilon is not None
        try:
            return noise_multiplier(self.epsilon, self.delta, rate, steps, terms)
        except ValueError as error:
            raise ConfigError("epsilon", self.epsilon, str(error)) from None

    def rounds_within(
        self, spent: Callable[[int], Iterable[tuple[Step, int]]], rounds: int, sampling: Sampling = "poisson"
    ) -> int | None:
        """How many of ``rounds`` the budget allows; ``None`` without a budget.

        Args:
            spent: what so many rounds cost each kind of unit, as a step and its number.
            sampling: how units are drawn.
        """
        if self.budget is None:
            return None
        terms, budget = self.terms(sampling), self.budget

        def within(n: int) -> bool:
            return all(terms.epsilon([kind], self.delta) <= budget for kind in set(spent(n)))

        low, high = 0, rounds + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if within(middle) else (low, middle)
        return low

    def check_budget(self, first: Iterable[tuple[Step, int]], sampling: Sampling = "poisson") -> None:
        """Raise :class:`ConfigError` if there is a budget that the ``first`` round exceeds, for some kind of unit."""
        if self.budget is not None:
            least = max(self.terms(sampling).epsilon([kind], self.delta) for kind in set(first))
            require(least <= self.budget, "budget", self.budget, f"at least {least:.4g}, which the first round takes")

    def check_delta(self, units: int, what: str) -> None:
        """Raise :class:`ConfigError` unless delta is below one over the number of units."""
        require(self.delta < 1 / units, "delta", self.delta, f"must be below 1/{what} = {1 / units:.3g}")

    def statement(
        self,
        unit: Unit,
        adversary: str,
        terms: Terms,
        history: Iterable[tuple[Step, int]],
        amplified: bool,
        **more: Any,
    ) -> dict[str, Any]:
        """What ``history`` guarantees against an adversary, with epsilon rounded up; ``more`` adds fields."""
        steps = list(history)
        value, second = terms.epsilon(steps, self.delta), terms.renyi(steps, self.delta)
        return {
            "unit": unit,
            "adjacency": terms.adjacency,
            "adversary": adversary,
            "epsilon": _stated(value),
            "rdp_epsilon": None if second is None else _stated(second),
            "delta": self.delta,
            "clip": self.clip,
            "noise_source": self.noise_source,
            # Sampling is drawn from the run's seed, and whoever knows the sample has no amplification.
            "simulated": self.noise_source == "seeded" or amplified,
            "accountant": terms.describe(steps, self.delta),
            "history": [[rate, sigma, times] for (rate, sigma), times in summed(steps)],
            **more,
        }


def _stated(value: float) -> float | None:
    return round_up(value) if math.isfinite(value) else None
