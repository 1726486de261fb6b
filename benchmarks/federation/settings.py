"""The federation's settings, as in ``conf/federation``."""

import math
from dataclasses import dataclass, field
from typing import Literal

from privbench.benchmarks.build import RUNTIME, require
from privbench.benchmarks.federation.augmentation import Augmentation
from privbench.benchmarks.federation.engine import EngineSettings
from privbench.benchmarks.federation.processes import Processes
from privbench.benchmarks.federation.server import ServerOptimizer, ServerSGD
from privbench.benchmarks.federation.update import Kind
from privbench.benchmarks.shares import at_least


@dataclass(frozen=True)
class LocalWork:
    """What a client does in one round: ``steps`` of SGD, or ``epochs`` over its records.

    Args:
        learning_rate: > 0.
        batch_size: records a step (the expected number under Poisson sampling); ``None`` is all that the client has.
        epochs: passes over the client's records; ignored where ``steps`` is given.
        steps: number of steps, whatever the number of records.
        momentum: in [0, 1); the buffer starts at zero in every round, since clients keep no state.
        weight_decay: L2 penalty, >= 0.
        proximal: mu of FedProx's term mu/2 ||w - w_t||^2 (Li et al. 2020), >= 0.
        share: ``update`` sends new minus received parameters (FedAvg, McMahan et al. 2017); ``gradient`` stays at the
            received model and sends the gradient averaged over the steps (FedSGD).
        augmentation: random changes of the images in each step.
    """

    learning_rate: float = 0.1
    batch_size: int | None = 10
    epochs: int = 1
    steps: int | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0
    proximal: float = 0.0
    share: Kind = "update"
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        require(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "must be positive")
        require(self.batch_size is None or self.batch_size >= 1, "batch_size", self.batch_size, "at least 1, or null")
        require(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        require(self.steps is None or self.steps >= 1, "steps", self.steps, "at least 1, or null")
        require(0 <= self.momentum < 1, "momentum", self.momentum, "in [0, 1)")
        require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "at least 0")
        require(0 <= self.proximal < math.inf, "proximal", self.proximal, "at least 0")
        for name in ("momentum", "weight_decay", "proximal") if self.share == "gradient" else ():
            value = getattr(self, name)
            require(value == 0, name, value, "0 with share=gradient: no local step is taken that it could change")

    def batch(self, records: int) -> int:
        """Records a step for a client that holds ``records``."""
        return records if self.batch_size is None else min(self.batch_size, records)

    def local_steps(self, records: int) -> int:
        """Local steps a round for a client that holds ``records``."""
        return self.steps if self.steps is not None else self.epochs * math.ceil(records / self.batch(records))


@dataclass(frozen=True)
class FederationSettings:
    """Who takes part, how often, and how the server steps.

    Args:
        clients: number of clients; ``None`` is the partition's natural number, else 20.
        rounds: communication rounds, at least 1.
        participation: expected share of clients a round, in (0, 1].
        sampling: ``fixed`` draws exactly ``round(participation * clients)`` without replacement, ``poisson`` each
            client independently (a cohort may be empty); ``None`` is what the privacy plan needs, else ``fixed``.
        max_participations: rounds that one client takes part in at most, which epsilon against who sees its messages
            counts; at least ``participation * rounds``. ``None`` for no cap.
        min_separation: of so many rounds in a row a client takes part in one at most; 1 for any number.
        weighting: ``records`` weighs an update by its client's records, ``equal`` does not; ``None`` is what the
            privacy plan needs, else ``records``.
        dropout: probability that an invited client never answers, in [0, 1).
        evaluate_every: rounds between evaluations; the last round is always evaluated.
        averaging: decay of an exponential moving average of the rounds' models, in [0, 1), 0 for none; utility is the
            average's (De et al. 2022, section 3.2, there over steps). It costs no privacy, and training goes on from
            the round's model.
        start_from: directory of a run of the same model, from whose last model this one goes on as from round 0, with
            the server's optimiser anew; refused under a guarantee, which would have to count that run's rounds.
            ``None``: from the model's initialisation.
        local: the clients' work.
        server: the server optimiser.
        engine: where clients train: processes of this machine, or the ranks of several. It doesn't change numbers.
        patience: seconds in which no client answers, after which the run stops; ``None`` waits for ever. Clients in the
            coordinating process (``workers`` 1, plaintext) can't be given up.
        workers: processes that run clients; ``None`` shares the cores among parallel jobs. It doesn't change numbers.
    """

    clients: int | None = None
    rounds: int = 20
    participation: float = 1.0
    sampling: Literal["fixed", "poisson"] | None = None
    max_participations: int | None = None
    min_separation: int = 1
    weighting: Literal["records", "equal"] | None = None
    dropout: float = 0.0
    evaluate_every: int = 1
    averaging: float = 0.0
    start_from: str | None = None
    local: LocalWork = field(default_factory=LocalWork)
    server: ServerOptimizer = field(default_factory=ServerSGD)
    engine: EngineSettings = field(default_factory=Processes, metadata=RUNTIME)
    patience: float | None = field(default=3600.0, metadata=RUNTIME)
    workers: int | None = field(default=None, metadata=RUNTIME)

    def __post_init__(self) -> None:
        require(self.clients is None or self.clients >= 1, "clients", self.clients, "at least 1")
        require(self.rounds >= 1, "rounds", self.rounds, "at least 1")
        require(0 < self.participation <= 1, "participation", self.participation, "a fraction in (0, 1]")
        most, mean = self.max_participations, at_least(self.participation, self.rounds)
        hint = f"at least {mean}, how often a client takes part on average, or null"
        require(most is None or most >= mean, "max_participations", most, hint)
        hint = "at least 1, which lets a client take part in every round"
        require(self.min_separation >= 1, "min_separation", self.min_separation, hint)
        require(0 <= self.dropout < 1, "dropout", self.dropout, "a probability in [0, 1)")
        require(0 <= self.averaging < 1, "averaging", self.averaging, "a decay in [0, 1), 0 for none")
        require(self.evaluate_every >= 1, "evaluate_every", self.evaluate_every, "at least 1")
        require(self.patience is None or self.patience > 0, "patience", self.patience, "seconds, more than 0, or null")
        require(self.workers is None or self.workers >= 1, "workers", self.workers, "at least 1, or null for the cores")
