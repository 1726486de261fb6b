"""A federation: who trains what, under which defense; checked before anything is trained."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn

from privbench.attacks.inference.canaries import Canaries
from privbench.attacks.poisoning.poisoner import Poisoner
from privbench.benchmarks.build import ConfigError, require
from privbench.benchmarks.federation import attested, units
from privbench.benchmarks.federation.attempts import Attempts
from privbench.benchmarks.federation.client import ClientSide
from privbench.benchmarks.federation.distribution import Distribution, Honest
from privbench.benchmarks.federation.engine import Engine
from privbench.benchmarks.federation.initial import model_of
from privbench.benchmarks.federation.loop import Loop, Round
from privbench.benchmarks.federation.sampling import limits
from privbench.benchmarks.federation.server import Pipeline, ServerSGD, ServerState
from privbench.benchmarks.federation.settings import FederationSettings
from privbench.benchmarks.federation.update import Layout
from privbench.benchmarks.federation.view import Mixture, Public, all_of_them
from privbench.benchmarks.tasks.models.architecture import Architecture
from privbench.benchmarks.tasks.task import Task
from privbench.defenses import Defense
from privbench.defenses.accounting import ClientPlan, Facts
from privbench.defenses.aggregation import ClippedMean, FixedDenominatorMean, Mean
from privbench.defenses.channel import Attested, Session, Setup


@dataclass
class Federation:
    """A federation of simulated clients under one defense, with at most one poisoner.

    Args:
        settings: who takes part, how often, how the server steps.
        task: data, loss, evaluation.
        model: the initial global model; with ``settings.start_from`` it is given that run's parameters.
        defense: the four stations.
        poisoner: owns the last ``poisoner.clients`` clients; ``None`` for nobody.
        seed: names every random stream.
        watched: clients whose updates views keep (where the channel shows them).
        keep: rounds whose views later rounds still hold; others are dropped after their round.
        device: where clients train.
        distribution: how the model reaches clients.
        canaries: an audit's; client canaries join the roster behind the other clients. ``None`` for none.
        crafting: rounds in which ``distribution`` is asked; in others everybody gets the global model. ``None``: all.
        architecture: the model's configuration, which attested clients build it from; ``None`` where there is none.

    Raises:
        ConfigError: for a combination that can't run, before anything is trained.
    """

    settings: FederationSettings
    task: Task
    model: nn.Module
    defense: Defense = field(default_factory=Defense)
    poisoner: Poisoner | None = None
    seed: int = 0
    watched: frozenset[int] = frozenset()
    keep: frozenset[int] = frozenset()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    distribution: Distribution = field(default_factory=Honest)
    architecture: Architecture | None = None
    crafting: frozenset[int] | None = None
    canaries: Canaries | None = None

    def __post_init__(self) -> None:
        settings = self.settings
        self.clients = number_of_clients(settings, self.task)
        self.task.check(self.clients)
        self.shares = self.task.split(self.clients, self.seed)
        self.layout = Layout.of(self.model)
        if settings.start_from is not None:
            self.layout.write(model_of(settings.start_from, self.layout), self.model)
        self.planted = units.plant(self) if self.canaries else None
        if self.planted:
            self.clients += self.planted.extra
            # A canary client enrols with one record, which it doesn't train on.
            self.shares += [torch.zeros(1, dtype=torch.int64)] * self.planted.extra
        private = self.defense.privacy is not None and self.defense.privacy.unit == "client"
        # Correlated noise counts on no sampling, but on clients that take part at a distance.
        amplified = private and getattr(self.defense.privacy, "bands", None) is None
        self.sampling = settings.sampling or ("poisson" if amplified and settings.participation < 1 else "fixed")
        self.weighting = settings.weighting or ("equal" if private else "records")
        require(
            not private or self.weighting == "equal",
            "federation.weighting",
            self.weighting,
            "a client-level guarantee needs equal weights: set equal (or null)",
        )
        require(
            self.task.separable or not self.defense.local.private,
            "defense.local",
            type(self.defense.local).__name__,
            f"no DP-SGD: the loss of {type(self.task).__name__} doesn't separate by record",
        )
        settings.local.augmentation.check(self.task.spec)
        self.defense.check(self.model, self.layout)
        self.facts = self._facts()
        self.plan = self.defense.bind(self.facts, self.layout.size)
        hint = "null under a guarantee: it would have to count the rounds of that run"
        require(self.plan is None or settings.start_from is None, "federation.start_from", settings.start_from, hint)
        self.defense.channel.check(self.facts, self.weighting, self.plan)
        self.defense.aggregation.check(self.facts)
        attackers = self.poisoner.owned(self.clients) if self.poisoner else 0
        require(
            attackers <= self.clients,
            "poisoning.clients",
            attackers,
            f"at most the number of clients, {self.clients}",
        )
        tampering = attackers if self.poisoner and self.poisoner.tampers else 0
        require(
            not isinstance(self.plan, ClientPlan) or self.plan.tolerates(tampering),
            "defense.privacy.honest",
            getattr(self.defense.privacy, "honest", None),
            f"{tampering} of {self.clients} clients tamper and add no noise: count on the others alone",
        )
        self.attackers = frozenset(range(self.clients - attackers, self.clients))
        limits(self)
        root = getattr(self.defense.aggregation, "root", None)
        hint = "a client that the poisoner doesn't own (it owns the last ones): the rule takes its data for clean"
        require(root not in self.attackers, "defense.aggregation.root", root, hint)
        if self.poisoner:
            try:
                self.poisoner.check(self.task.spec, self.task.bound_trigger, settings.local)
            except ConfigError as error:
                raise error if error.field.startswith("task.") else error.under("poisoning") from None
        self.local = self.defense.local
        if self.attests:
            attested.check(self)

    @property
    def reads_updates(self) -> bool:
        """Whether the poisoner reads honest updates before its clients send theirs."""
        asks = self.poisoner.asks if self.poisoner else frozenset()
        return "honest_updates" in asks and self.defense.channel.plaintext

    @property
    def attests(self) -> bool:
        """Whether clients train in attested guests."""
        return isinstance(self.defense.channel, Attested) and self.defense.channel.attest_clients

    def _facts(self) -> Facts:
        planted = self.planted
        out, late = self.settings.dropout, self.defense.channel.dropout
        records = tuple(planted.enrolled(len(s), c) if planted else len(s) for c, s in enumerate(self.shares))
        work, patients = self.settings.local, units.patients(self)
        drawn = patients or records
        return Facts(
            clients=self.clients,
            rounds=self.settings.rounds,
            participation=self.settings.participation,
            sampling=self.sampling,
            records=records,
            batch=tuple(work.batch(n) for n in drawn),
            steps=tuple(work.local_steps(n) for n in drawn),
            patients=patients,
            cap=self.settings.max_participations,
            separation=self.settings.min_separation,
            operator_reads_updates=self.defense.channel.plaintext,
            # Of either: written so that a single one keeps its digits, which messages show.
            dropout=out + late - out * late,
        )

    @property
    def public(self) -> Public:
        """What everyone in this federation knows."""
        spec, work = self.task.spec, self.settings.local
        return Public(
            model=self.model,
            layout=self.layout,
            loss=self.task.loss,
            shape=spec.shape,
            classes=len(spec.classes),
            mean=spec.mean,
            std=spec.std,
            kind=work.share,
            learning_rate=work.learning_rate,
            local_steps=work.local_steps,
            # Which records are one patient's isn't public, so that any of them may have been drawn.
            visited=all_of_them if self.facts.patients else partial(self.defense.local.visited, work=work),
            server=self.settings.server,
            work=work,
            known=self.plan.known if self.plan else self.defense.local.known,
            records=self.facts.records,
            mixture=self._mixture(),
        )

    def _mixture(self) -> Mixture | None:
        """How updates become the aggregate; ``None`` where the rule isn't a weighted mean."""
        rule, weights = self.defense.aggregation, self.sizes
        expected = self.facts.expected
        if isinstance(rule, Mean):
            return Mixture(weights)
        if isinstance(rule, FixedDenominatorMean):
            return Mixture(weights, expected)
        if not isinstance(rule, ClippedMean):
            return None
        if rule.clip is not None or self.plan is None:
            return Mixture(weights, clip=rule.clip)
        # Under a plan the clip is the plan's and the divisor the expected cohort.
        return Mixture(weights, expected, self.plan.clip)

    @property
    def sizes(self) -> tuple[float, ...]:
        """Each client's weight in a mean."""
        return tuple(float(n) if self.weighting == "records" else 1.0 for n in self.facts.records)

    def workers(self, parallel_jobs: int = 1) -> int:
        """Processes for clients: as the engine has it, where ``parallel_jobs`` runs share this machine."""
        return self.settings.engine.processes(self.clients, self.settings.workers, parallel_jobs)

    def start(self) -> ServerState:
        """The state before the first round."""
        return ServerState(round=0, model=self.layout.read(self.model))

    def settle(self, state: ServerState) -> None:
        """Have the local mechanism choose what it measures on this machine, once for all clients.

        Args:
            state: keeps the choice, by which a resumed run goes on.

        Raises:
            ConfigError: if it can't train the model.
        """
        if not self.local.private:
            return
        batch = units.like_a_step(self)
        model = copy.deepcopy(self.model).to(self.device).train()
        self.local = self.defense.local.settle(state.per_sample, model, self.task.loss, batch)
        state.per_sample = self.local.chosen

    def session(self, state: ServerState, run: str = "run", folder: Path | None = None, workers: int = 1) -> Session:
        """The channel at work in this run, before its first round or after ``state.round`` of them.

        Args:
            run: the run's name.
            folder: where the channel keeps what outlives the run.
            workers: processes that clients run in.

        Raises:
            Unavailable: if the channel can't be had here.
        """
        spec = self.task.spec
        setup = Setup(
            run=run,
            seed=self.seed,
            model=self.layout.read(self.model),
            layout=self.layout,
            pipeline=self.pipeline,
            privacy=self.defense.privacy,
            facts=self.facts,
            weighting=self.weighting,
            share=self.settings.local.share,
            learning_rate=self.settings.local.learning_rate,
            schema=f"{spec.name} {spec.shape} {spec.classes}",
            folder=folder,
            training=attested.training(self) if self.attests else None,
            tampered=self.poisoner.patches(self.owned) if self.attests and self.poisoner else {},
            workers=workers,
        )
        return self.defense.channel.start(setup, state)

    @property
    def pipeline(self) -> Pipeline:
        """The rest of an update's way, once it is out of the channel."""
        return Pipeline(self.defense.aggregation, self.defense.release, self.settings.server)

    def client_side(self, session: Session | None = None) -> ClientSide:
        """What an engine's processes need to run clients.

        Args:
            session: the channel at work; ``None`` starts one, which whoever asks closes (``side.channel.close()``).
        """
        if session is None:
            self.settle(self.start())
        return ClientSide(
            seed=self.seed,
            data=self.task.data.train,
            shares=self.shares,
            spec=self.task.spec,
            trigger=self.task.bound_trigger,
            relabel=self.task.relabel,
            model=self.model,
            layout=self.layout,
            loss=self.task.loss,
            work=self.settings.local,
            local=self.local,
            channel=session or self.session(self.start()),
            plan=self.plan,
            poisoner=self.poisoner,
            attackers=self.attackers,
            weights=self._weights(),
            received=torch.empty(self.layout.size).share_memory_(),
            device=self.device,
            planted=self.planted,
            rule=self.defense.aggregation if self.poisoner and "rule" in self.poisoner.asks else None,
        )

    @property
    def owned(self) -> float:
        """Weight in the server's step of the poisoner's clients that attack together; of the heaviest one in turn."""
        weights = self._weights()
        own = [weights[c] for c in self.attackers]
        in_turn = self.poisoner is not None and self.poisoner.schedule.in_turn
        return min(1.0, max(own) if in_turn else sum(own))

    def _weights(self) -> list[float]:
        server = self.settings.server
        rate = server.learning_rate if isinstance(server, ServerSGD) else 1.0
        sizes = self.sizes
        expected = self.facts.rate * sum(sizes)
        return [s * rate / expected for s in sizes]

    def run(
        self, state: ServerState, side: ClientSide, engine: Engine, attempts: Attempts | None = None
    ) -> Iterator[Round]:
        """Rounds from the one after ``state`` to the last.

        Args:
            state: from :meth:`start` or a checkpoint; changed in place.
            side: from :meth:`client_side`, the context that ``engine`` was made with.
            engine: where clients run.
            attempts: at the round after ``state``, those that a killed process began; ``None`` for none.

        Raises:
            Diverged: if the model leaves the finite numbers.
            HistoryMissing, BudgetSpent: under a guarantee, if what is left of an earlier process can't be gone on with.
            WorkerDied, ClientFailed: if a worker dies or a client function raises.
        """
        return Loop(self, side, engine, attempts or Attempts()).rounds(state)


def number_of_clients(settings: FederationSettings, task: Task) -> int:
    """``federation.clients``, else the partition's natural number, else 20."""
    return settings.clients or task.natural_clients or 20
