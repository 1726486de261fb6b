"""A whole round of federated training, under each defense."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from privbench.benchmarks.conform import require
from privbench.benchmarks.overhead.workloads.workload import Bench, Case, Steps, Unavailable
from privbench.benchmarks.tasks.sources import DataMissing

EMULATED = "the TEE is emulated in software: this is the protocol's cost, and no hardware's"
PLENTY = 100_000
"""Rounds of the federation: more than are timed, so that none is its last."""


@dataclass(frozen=True)
class FederatedRound:
    """Rounds of the suite's own loop, one after another; each repeat is the next one.

    Args:
        defenses: options of the group ``defense``.
        overrides: of every run: its task, model and sizes. Where a defense has a guarantee, its noise is a fixed
            multiplier, so that no accounting is timed.
        clients: in the federation; all of them take part, or their expected number under Poisson sampling.
    """

    defenses: tuple[str, ...] = ("none", "dp_local", "dp_central", "median", "secagg", "tee", "tee_dp")
    overrides: tuple[str, ...] = ("task=digits", "model=mlp", "federation.local.batch_size=20")
    clients: int = 10

    def __post_init__(self) -> None:
        distinct = bool(self.defenses) and len(set(self.defenses)) == len(self.defenses)
        require(distinct, "defenses", self.defenses, "options of the group defense, each once")
        require(self.clients >= 2, "clients", self.clients, "2 or more")

    def cases(self, bench: Bench) -> Iterator[Case]:
        # All are composed before the first is timed: a name that isn't there would end a record in its middle.
        configs = {name: self._composed(name, bench) for name in self.defenses}
        for name, config in configs.items():
            emulated = (config["defense"]["channel"] or {}).get("platform") == "software"
            yield Case(
                name=name,
                open=lambda config=config: self._open(config),
                unit="rounds",
                doubts=(EMULATED,) if emulated else (),
            )

    def _composed(self, defense: str, bench: Bench) -> dict[str, Any]:
        """The configuration of a run, checked, whose noise is a fixed multiplier."""
        from hydra.types import RunMode

        from privbench.benchmarks import experiment, sweep

        own = [f"defense={defense}", f"federation.clients={self.clients}", f"federation.rounds={PLENTY}"]
        asked = [*self.overrides, *own, "federation.workers=1", f"results_dir='{bench.scratch / 'results'}'"]
        with sweep.searching(None) as hydra:
            config = sweep.plain(hydra.compose_config("config", asked, RunMode.RUN, with_log_configuration=False))
        if config["defense"].get("privacy"):
            config["defense"]["privacy"] |= {"epsilon": None, "noise_multiplier": 1.0}
        experiment.compose(config)
        return config

    @contextmanager
    def _open(self, config: dict[str, Any]) -> Iterator[Steps]:
        import torch

        from privbench.benchmarks.experiment import prepare
        from privbench.benchmarks.federation import processes as engines

        try:
            federation = prepare(config).federation
        except DataMissing as error:
            raise Unavailable(str(error)) from None
        side = federation.client_side()
        # Clients in this process, but where the channel needs them apart.
        engine = engines.start(side, 1, torch.device("cpu"), federation.defense.channel.apart)
        try:
            rounds = federation.run(federation.start(), side, engine)
            yield Steps(lambda: next(rounds))
        finally:
            engine.close()
            side.channel.close()
