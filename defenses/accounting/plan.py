"""The privacy plan: from one object come sampling, normaliser, clip, noise and accountant, so none changes alone."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

from privbench.benchmarks.build import ConfigError, require
from privbench.benchmarks.federation.view import Known
from privbench.benchmarks.shares import at_least, at_most
from privbench.defenses.accounting.accountant import Terms, round_up
from privbench.defenses.accounting.discrete import Grid
from privbench.defenses.accounting.factorisation import Banded, banded
from privbench.defenses.accounting.guarantee import Facts, Guarantee, Plan, Unit
from privbench.defenses.accounting.history import MOST_NOISE, Step
from privbench.defenses.accounting.record_level import RecordLevel, RecordPlan
from privbench.defenses.accounting.wording import (
    MECHANISMS,
    NOT_COVERED,
    READS_MESSAGES,
    READS_RECEIPTS,
    READS_UPDATES,
    RECEIPT_READER,
    SEES_SUMS,
    SEES_WHO,
    Noise,
    adapted,
    assumes,
    correlated,
    once_in,
)
from privbench.defenses.noise import Source

__all__ = ["ClientLevel", "ClientPlan", "Facts", "Plan", "Privacy", "RecordLevel", "RecordPlan"]


@dataclass(frozen=True)
class ClientLevel(Guarantee):
    """(epsilon, delta) for a whole client, by Gaussian noise on clipped updates (docs/privacy-settings.md).

    ``central``: whoever aggregates adds it once (DP-FedAvg, McMahan et al. 2018); client sampling is Poisson with
    q = participation, or of a fixed size with q = that size over the clients. ``local``: every client adds as much as
    its message needs against whoever reads it.
    ``distributed``: every client adds a share, so that the sum carries what central noise would (Dwork et al. 2006),
    which holds only against those who see no single message. Updates weigh equally, and sums are divided by the
    expected cohort size.

    Args:
        noise: who adds the noise.
        honest: share of the cohort that is counted on to add its noise, in (0, 1]; 1 with central noise.
        present: share of the cohort without which nothing is released, in (0, 1]: distributed noise is made for so
            many, so that clients may drop out. Only behind a channel that holds smaller sums back.
        adaptive: the clip follows a quantile of the updates' norms, which costs privacy; ``clip`` is the first.
        count_noise: standard deviation of the noise on the number of clients below the adapted clip, above half the
            noise multiplier; ``None``: a twentieth of the cohort (Andrew et al. 2021), or twice the noise multiplier
            if that is more, which makes the noise on updates 3% more.
        bands: rounds over which central noise is correlated, in place of amplification by sampling, where nobody takes
            part twice in so many rounds (``federation.min_separation``); 1 is independent noise without amplification.
    """

    noise: Noise = "central"
    honest: float = 1.0
    present: float = 1.0
    adaptive: bool = False
    count_noise: float | None = None
    bands: int | None = None
    unit: ClassVar[Unit] = "client"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.honest <= 1, "honest", self.honest, "a fraction in (0, 1]")
        require(0 < self.present <= 1, "present", self.present, "a fraction in (0, 1]")
        hint = "1: only noise=distributed is made for the clients that are sure to be there"
        require(self.noise == "distributed" or self.present == 1, "present", self.present, hint)
        require(self.noise != "central" or self.honest == 1, "honest", self.honest, "1: with noise=central none counts")
        hint = "false: only who adds the noise to the sum (noise=central) can adapt the clip"
        require(self.noise == "central" or not self.adaptive, "adaptive", self.adaptive, hint)
        hint = "null: there is nothing to count without adaptive=true"
        require(self.adaptive or self.count_noise is None, "count_noise", self.count_noise, hint)
        known = self.count_noise is None or 0 < self.count_noise <= MOST_NOISE
        require(known, "count_noise", self.count_noise, f"positive, and at most {MOST_NOISE:g}")
        require(self.bands is None or self.bands >= 1, "bands", self.bands, "at least 1, or null")
        correlated = self.bands is not None
        hint = "null: only who adds the noise to the sum (noise=central) can correlate it over rounds"
        require(self.noise == "central" or not correlated, "bands", self.bands, hint)
        hint = "null with adaptive=true: noise of rounds with different clips has no common matrix"
        require(not self.adaptive or not correlated, "bands", self.bands, hint)

    def bind(self, facts: Facts) -> "ClientPlan":
        """The plan for a federation.

        Raises:
            ConfigError: if sampling, participation or drop-outs contradict it, or delta isn't below one over the
                number of clients.
        """
        amplified = self.noise == "central" and self.bands is None
        if amplified and self.terms().accountant != "rdp":
            hint = "this guarantee is amplified by Poisson sampling: set federation.sampling=poisson (or null)"
            hint += ", or account for a fixed size with privacy.accountant=rdp and privacy.adjacency=replace"
            require(facts.sampling == "poisson" or facts.rate == 1, "sampling", facts.sampling, hint)
        if facts.limited and (amplified or self.noise == "distributed"):
            none, value = ("null", facts.cap) if facts.separation == 1 else ("1", facts.separation)
            hint = f"{none}: it changes who is drawn, and amplification counts on drawing independently"
            hint += " (defense=dp_ftrl doesn't)"
            hint = hint if amplified else f"{none}: sums hold the noise of all clients in every round"
            raise ConfigError(facts.limited, value, hint)
        if self.bands is not None:
            hint = f"at most federation.min_separation={facts.separation}, or a client's noise is less than is counted"
            require(self.bands <= facts.separation, "bands", self.bands, hint)
        if self.noise == "distributed":
            hint = "1 with noise=distributed: the sum's noise is made of all clients' shares, whoever is drawn"
            require(facts.participation == 1, "participation", facts.participation, hint)
            hint = "0 with noise=distributed: who drops out takes its share of the noise along; or privacy.present < 1"
            require(facts.dropout == 0 or self.present < 1, "dropout", facts.dropout, hint)
            hint = "1: a plaintext channel holds no sum back"
            require(self.present == 1 or not facts.operator_reads_updates, "present", self.present, hint)
        self.check_delta(facts.clients, "clients")
        # Clients that noise their own messages hide nothing behind sampling: see ClientPlan.statements.
        rate = facts.rate if amplified else 1.0
        sigma = self.sigma(rate, facts.counted(facts.rounds), facts.sampling)
        if self.count_noise is not None:
            hint = f"more than {sigma / 2:.4g}, half the noise multiplier: the count alone would cost all there is"
            require(self.count_noise > sigma / 2, "count_noise", self.count_noise, hint)
        plan = ClientPlan(self, facts, sigma)
        if self.noise == "distributed":
            hint = f"more: {plan.dishonest} of {plan.expected:g} clients aren't counted on, and a sum has {plan.needed}"
            require(plan.needed > plan.dishonest, "honest", self.honest, hint)
        self.check_budget([plan.spent(1)], facts.sampling)
        return plan


@dataclass(frozen=True)
class ClientPlan:
    """:class:`ClientLevel` bound to a federation."""

    guarantee: ClientLevel
    facts: Facts
    noise_multiplier: float
    grid: Grid | None = None
    unit: Unit = field(default="client", init=False)

    def on(self, grid: Grid) -> "ClientPlan":
        """The same with discrete noise.

        Raises:
            ConfigError: without an accountant that has a proof for it, or on a grid that is too coarse.
        """
        name = self.guarantee.accountant
        hint = "rdp: it alone has a proof for a sum of discrete Gaussians"
        require(name == "rdp", "defense.privacy.accountant", name, hint)
        grid.bound(self.clip)
        made = replace(self, grid=grid)
        made.proven(made.sum_multiplier)
        made.guarantee.check_budget([made.spent(1)], made.facts.sampling)
        return made

    def proven(self, multiplier: float) -> float:
        """The multiplier that is accounted for where a sum has this one."""
        return multiplier if self.grid is None else self.grid.multiplier(multiplier, self.clip, self.shares)

    @property
    def clip(self) -> float:
        return self.guarantee.clip

    @property
    def noise_source(self) -> Source:
        return self.guarantee.noise_source

    @property
    def count_noise(self) -> float:
        """Standard deviation of the noise on the number of clients below an adapted clip; 0 without one."""
        if not self.guarantee.adaptive:
            return 0.0
        given = self.guarantee.count_noise
        return max(self.expected / 20, 2 * self.noise_multiplier) if given is None else given

    @property
    def update_multiplier(self) -> float:
        """Noise on the sum of updates over C: with the count's, which one client moves by 1/2, it costs what z says.

        ``(z^-2 - (2 sigma_b)^-2)^(-1/2)`` (Andrew et al. 2021, theorem 1).
        """
        z, counted = self.noise_multiplier, self.count_noise
        return z if not counted or not z else (z**-2 - (2 * counted) ** -2) ** -0.5

    @cached_property
    def matrix(self) -> Banded | None:
        """By which central noise is correlated over rounds, if it is."""
        bands = self.guarantee.bands
        return None if bands is None else banded(bands, self.facts.rounds)

    @property
    def expected(self) -> float:
        """Expected cohort size K, by which sums are divided."""
        return self.facts.expected

    @property
    def needed(self) -> int:
        """How many clients every sum must hold for its noise to be as counted: all that are drawn, those that are sure
        to be present, or any number (0).

        Who is missing might be honest, and who isn't honest present: one client less is one share less.
        """
        facts, noise = self.facts, self.guarantee.noise
        varies = facts.dropout > 0 or facts.limited or (facts.sampling == "poisson" and facts.participation < 1)
        if noise == "central" or (varies and noise == "local"):
            return 0
        return max(1, at_least(self.guarantee.present, round(self.expected)))

    @property
    def shares(self) -> int:
        """How many clients' noise a round's sum holds for sure; 1 (one's own) where cohorts vary, 0 if central."""
        if self.guarantee.noise == "central":
            return 0
        return max(1, self.needed - self.dishonest)

    @property
    def dishonest(self) -> int:
        """How many clients of a cohort aren't counted on to add their noise. All of them may be in a sum."""
        expected = round(self.expected)
        return expected - at_most(self.guarantee.honest, expected)

    @property
    def message_multiplier(self) -> float:
        """Noise on one client's message, over C: z under local noise, z / sqrt(shares) under distributed, else 0."""
        by = {"central": 0.0, "local": 1.0, "distributed": 1 / math.sqrt(max(1, self.shares))}
        return by[self.guarantee.noise] * self.noise_multiplier

    @property
    def sum_multiplier(self) -> float:
        """Noise that a round's sum holds for sure, over C."""
        if self.guarantee.noise == "local":
            return self.noise_multiplier * math.sqrt(self.shares)
        return self.noise_multiplier

    def noise_std(self, cohort: float, round: int = 1) -> float:
        """Standard deviation of the noise on each coordinate of the released mean if ``cohort`` clients take part."""
        added = self.update_multiplier if not self.shares else self.message_multiplier * math.sqrt(cohort)
        spread = self.matrix.spread(round) if self.matrix else 1.0
        return added * spread * self.clip / self.expected

    def tolerates(self, tampering: int) -> bool:
        """Whether the guarantee holds although so many clients add no noise."""
        return self.shares <= max(1, self.needed - tampering)

    def counted(self, rounds: int, lost: int = 0) -> int:
        """How often any one client's update is in what was released after so many rounds and ``lost`` attempts."""
        if self.matrix is None:
            return self.facts.counted(rounds, lost)
        # A row of the matrix that is released twice holds what clients of earlier rounds sent.
        return self.facts.counted(rounds) + lost

    def spent(self, rounds: int, lost: int = 0) -> tuple[Step, int]:
        """What so many rounds and ``lost`` attempts cost against whom the noise is calibrated."""
        if self.guarantee.noise == "central" and self.matrix is None:
            return (self.facts.rate, self.noise_multiplier), rounds + lost
        local = self.guarantee.noise == "local"
        multiplier = self.noise_multiplier if local else self.proven(self.noise_multiplier)
        return (1.0, multiplier), self.counted(rounds, lost)

    def affordable(self, lost: int = 0) -> int | None:
        facts = self.facts
        return self.guarantee.rounds_within(lambda n: [self.spent(n, lost)], facts.rounds, facts.sampling)

    def charge(self, round: int, cohort: Iterable[int]) -> dict[str, Any]:
        if self.guarantee.noise == "central":
            rate = self.facts.rate if self.matrix is None else 1.0
            multiplier = {"sampling_rate": rate, "noise_multiplier": self.noise_multiplier}
        else:
            counted = self.proven(self.sum_multiplier)
            multiplier = {"noise_multiplier": counted, "message_multiplier": self.message_multiplier}
        return {"round": round, **multiplier}

    def statements(self, ledger: list[dict[str, Any]]) -> list[dict[str, Any]]:
        stated = [self._recipient(ledger), self._operator(ledger)]
        if self.in_receipts:
            stated.append(self._unsampled(RECEIPT_READER, ledger, "noise_multiplier", READS_RECEIPTS))
        return stated

    @property
    def in_receipts(self) -> bool:
        """Whether there are receipts, which name the size of each cohort, and sampling that they take away from.

        Central noise on updates that whoever runs the server doesn't read is an attested aggregator's.
        """
        central = self.guarantee.noise == "central" and self.matrix is None
        varies = self.facts.sampling == "poisson" and self.facts.rate < 1
        return central and varies and not self.facts.operator_reads_updates

    def _recipient(self, ledger: list[dict[str, Any]]) -> dict[str, Any]:
        """Against whoever gets models: the sum's noise; amplified by sampling only if it is central.

        Noise by each client grows with the cohort, whose size its length then shows: hiding who takes part behind
        sampling would presume a size that says nothing.
        """
        if self.shares:
            return self._unsampled("model_recipient", ledger, "noise_multiplier", SEES_SUMS)
        if self.matrix is not None:
            apart, n = self.facts.separation, self._counted(ledger)
            return self._unsampled("model_recipient", ledger, "noise_multiplier", once_in(apart, n))
        rate, terms = self.facts.rate, self.guarantee.terms(self.facts.sampling)
        history = [((e["sampling_rate"], e["noise_multiplier"]), 1) for e in ledger]
        return self.guarantee.statement(self.unit, "model_recipient", terms, history, rate < 1, **self._common(ledger))

    def _operator(self, ledger: list[dict[str, Any]]) -> dict[str, Any]:
        """Against whoever runs the server: it sees who takes part, so that sampling amplifies nothing."""
        if not self.facts.operator_reads_updates:
            return self._unsampled("server_operator", ledger, "noise_multiplier", SEES_WHO)
        if self.shares:
            return self._unsampled("server_operator", ledger, "message_multiplier", READS_MESSAGES)
        sampled = self.facts.rate < 1
        bare: list[tuple[Step, int]] = [((1.0, 0.0), max(1, len(ledger)))]
        more = {**self._common(ledger), "why": READS_UPDATES}
        return self.guarantee.statement(self.unit, "server_operator", self.guarantee.terms(), bare, sampled, **more)

    def _unsampled(self, adversary: str, ledger: list[dict[str, Any]], noise: str, why: str) -> dict[str, Any]:
        """Against one who may see who takes part: an update is hidden (it might be zero), not that there was one."""
        # Without the noise of single rounds there is no saying which of them a client took part in; it is the same.
        history = [((1.0, e[noise]), 1) for e in ledger[: self._counted(ledger)]]
        replace = self.guarantee.adjacency == "replace"
        terms = Terms(self.guarantee.accountant, "replace" if replace else "zero_out")
        more: dict[str, Any] = {
            **self._common(ledger),
            "sampling": "none",
            "sampling_rate": 1.0,
            "noise_multiplier": min((e[noise] for e in ledger), default=self.noise_multiplier),
            "why": why,
        }
        if self.shares:
            # Local DP compares any two updates: up to 2 C apart.
            replaced = Terms(self.guarantee.accountant, "replace").epsilon(history, self.guarantee.delta)
            more["epsilon_replace_one"] = round_up(replaced) if math.isfinite(replaced) else None
            if noise == "message_multiplier":
                more["not_covered"] = NOT_COVERED
            elif self.shares > 1:
                more["assumes"] = assumes(self.shares)
        return self.guarantee.statement(self.unit, adversary, terms, history, False, **more)

    def _counted(self, ledger: list[dict[str, Any]]) -> int:
        rounds = len({e["round"] for e in ledger})
        return self.counted(rounds, len(ledger) - rounds)

    def _common(self, ledger: list[dict[str, Any]]) -> dict[str, Any]:
        mechanism = MECHANISMS[self.guarantee.noise] + (f", {self.grid}" if self.grid else "")
        if self.matrix is not None:
            mechanism += correlated(len(self.matrix.coefficients))
        if self.count_noise:
            mechanism += adapted(self.count_noise, self.update_multiplier)
        return {
            "mechanism": mechanism,
            "sampling": self.facts.sampling,
            "sampling_rate": self.facts.rate,
            "noise_multiplier": self.noise_multiplier,
            "rounds": len(ledger),
        }

    def known(self, source: str, client: int) -> Known:
        if source == "update":
            # What the server adds later is no protection of an update that it reads.
            own = self.message_multiplier * self.clip
            return Known(clip=self.clip, noise_std=own) if self.shares else Known()
        # An adapted clip is another one in each round; what is said of the noise is then of the first.
        # Correlated noise is largest in the last round.
        largest = self.noise_std(self.expected, self.facts.rounds)
        return Known(clip=None if self.count_noise else self.clip, noise_std=largest)


Privacy = ClientLevel | RecordLevel
