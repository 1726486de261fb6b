"""One run, built and checked from its configuration; nothing here trains."""

import os
import re
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from privbench.attacks.poisoning import Poisoner
from privbench.benchmarks.attackable import check_attacks, check_inference, craft, kept_rounds, victims
from privbench.benchmarks.build import RUNTIME, ConfigError, build, canonical, conform, require, resolve, settings
from privbench.benchmarks.federation.federation import Federation, number_of_clients
from privbench.benchmarks.federation.settings import FederationSettings
from privbench.benchmarks.measures.inference import Inference
from privbench.benchmarks.measures.leakage import Leakage
from privbench.benchmarks.results.published import Published
from privbench.benchmarks.tasks.models.architecture import Architecture, Custom, make
from privbench.benchmarks.tasks.models.dense import LogisticRegression
from privbench.benchmarks.tasks.task import Task
from privbench.defenses import Defense

GROUPS = ("task", "model", "federation", "defense", "leakage", "poisoning", "inference")


@dataclass(frozen=True)
class Experiment:
    """What one run consists of: the root of the configuration.

    Args:
        task, model, federation, defense: the groups of these names.
        leakage, poisoning, inference: likewise; ``None`` for none.
        seed: names every random stream.
        epsilon: what the suite's private defenses take as their ``privacy.epsilon``. Others have no use for it, so that
            one sweep holds arms with and without a guarantee.
        f: likewise ``aggregation.f`` of robust rules: the attackers that they are told of, at least 0.
        honest: likewise ``privacy.honest`` of those whose clients add the noise, in (0, 1].
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.
        results_dir: where results go.
        data_dir: where data sets are looked for first.
        name: of the sweep that this run belongs to.
        rerun: finished runs to repeat: ``never``, ``stale`` (made by another revision) or ``all``, which starts failed
            and killed ones anew as well.
        trusted_targets: packages besides privbench that ``_target_`` may name.
        published: figures that a paper reports of this experiment, for the report.
        profile: ``none``; ``spans`` records what the parts of each round took, ``trace`` also when, for a viewer.
        repeat: of a run whose numbers are the same, to measure again what it costs; at least 0.
    """

    task: Task
    model: Architecture
    federation: FederationSettings
    defense: Defense
    leakage: Leakage | None = None
    poisoning: Poisoner | None = None
    inference: Inference | None = None
    seed: int = 0
    epsilon: float = field(default=8.0, metadata=RUNTIME)
    f: int = field(default=1, metadata=RUNTIME)
    honest: float = field(default=1.0, metadata=RUNTIME)
    device: str = field(default="cpu", metadata=RUNTIME)
    results_dir: str = field(default="results", metadata=RUNTIME)
    data_dir: str | None = field(default=None, metadata=RUNTIME)
    name: str | None = field(default=None, metadata=RUNTIME)
    rerun: Literal["never", "stale", "all"] = field(default="never", metadata=RUNTIME)
    trusted_targets: tuple[str, ...] = field(default=(), metadata=RUNTIME)
    published: tuple[Published, ...] = field(default=(), metadata=RUNTIME)
    profile: Literal["none", "spans", "trace"] = field(default="none", metadata=RUNTIME)
    repeat: int = field(default=0, metadata=RUNTIME)

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "seed", self.seed, "a whole number from 0")
        require(self.repeat >= 0, "repeat", self.repeat, "a whole number from 0")
        require(self.epsilon > 0, "epsilon", self.epsilon, "positive")
        require(self.f >= 0, "f", self.f, "a whole number from 0")
        require(0 < self.honest <= 1, "honest", self.honest, "a fraction in (0, 1]")
        plain = self.name is None or (re.fullmatch(r"\w[\w.-]*", self.name) and self.name not in ("runs", "report"))
        require(bool(plain), "name", self.name, "letters, digits, '.', '_' and '-' (a folder), not runs or report")


@dataclass(frozen=True)
class Prepared:
    """A run that was checked and can start.

    Args:
        experiment, federation, model: its objects; ``model`` is the initial global model, the federation's.
        settings: what changes its numbers, without the seed.
        config: the whole configuration, resolved.
        path: its directory.
    """

    experiment: Experiment
    federation: Federation
    model: nn.Module
    settings: dict[str, Any]
    config: dict[str, Any]
    path: Path

    @property
    def id(self) -> str:
        """``<12 hex digits of the settings' SHA-256>-s<seed>``; ``-r<repeat>`` after it from the first repeat on."""
        return self.path.name


TARGET = f"{Experiment.__module__}.{Experiment.__name__}"


def compose(config: dict[str, Any]) -> Experiment:
    """The objects that a configuration describes; data isn't touched.

    Raises:
        ConfigError: for a field that one of them refuses.
    """
    trusted = conform(config.get("trusted_targets") or (), tuple[str, ...], "trusted_targets")
    # A group whose option is ``none`` is an empty mapping.
    fields = {k: None if k in GROUPS and not v else v for k, v in config.items()}
    return build({"_target_": TARGET, **fields, "model": _architecture(fields.get("model"), trusted)}, trusted)


def _architecture(model: Any, trusted: tuple[str, ...]) -> Any:
    """``model`` itself if it names an architecture; else its target is a module's factory, called under the seed."""
    if not isinstance(model, dict) or "_target_" not in model:
        return model
    target = resolve(model["_target_"], trusted, "model")
    module = isinstance(target, type) and issubclass(target, nn.Module)
    if hasattr(target, "build") and not module:
        return model
    return Custom(build({**model, "_partial_": True}, trusted, "model"))


def divided(config: dict[str, Any]) -> tuple[Experiment, int]:
    """An experiment as far as a partition of its task needs it, and its number of clients.

    Model, defense and attacks are left out: a table's partition can be drawn although the default model takes images.

    Raises:
        ConfigError: for a field of the others that is refused.
    """
    plain = {"_target_": f"{LogisticRegression.__module__}.{LogisticRegression.__name__}"}
    none = {"_target_": f"{Defense.__module__}.{Defense.__name__}"}
    attacks = dict.fromkeys(("leakage", "poisoning", "inference"))
    experiment = compose({**config, "model": plain, "defense": none, **attacks})
    check_writable(Path(experiment.results_dir))
    clients = number_of_clients(experiment.federation, experiment.task)
    experiment.task.check(clients)
    return experiment, clients


def prepare(config: dict[str, Any], writes: bool = True) -> Prepared:
    """Build everything that a run needs and check that it can run.

    Args:
        config: the resolved configuration as plain containers.
        writes: whether this process is to coordinate and record the run; others train some of its clients.

    Raises:
        ConfigError: names the field, the value and what would be right.
    """
    experiment = compose(config)
    device = _device(experiment.device)
    if writes:
        check_writable(Path(experiment.results_dir))
    model = _model(experiment)
    leakage = experiment.leakage
    federation = Federation(
        settings=experiment.federation,
        task=experiment.task,
        model=model,
        defense=experiment.defense,
        poisoner=experiment.poisoning,
        seed=experiment.seed,
        watched=victims(experiment) if leakage else frozenset(),
        keep=kept_rounds(leakage, experiment.federation) if leakage else frozenset(),
        device=device,
        architecture=experiment.model,
        canaries=experiment.inference.planted if experiment.inference else None,
    )
    experiment.federation.engine.check(federation.clients, experiment.federation.workers, experiment.defense.channel)
    check_attacks(experiment, federation)
    check_inference(experiment, federation)
    if leakage and "model_modification" in leakage.attack.needs:
        craft(leakage, federation)
    chosen = settings({"_target_": TARGET, **config}, experiment.trusted_targets)
    kept = {k: chosen[k] for k in GROUPS if chosen.get(k)}
    name = f"{sha256(canonical(kept).encode()).hexdigest()[:12]}-s{experiment.seed}"
    name += f"-r{experiment.repeat}" if experiment.repeat else ""
    return Prepared(experiment, federation, model, kept, config, Path(experiment.results_dir) / "runs" / name)


def _model(experiment: Experiment) -> nn.Module:
    try:
        return make(experiment.model, experiment.task.spec, experiment.seed)
    except ConfigError:
        raise
    except Exception as error:  # no memory for it, or whatever a module of the user's raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError("model", type(experiment.model).__name__, f"a model that can be built ({reason})") from None


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError("device", name, "cpu, cuda, cuda:N or auto") from None
    require(device.type in ("cpu", "cuda"), "device", name, "cpu, cuda, cuda:N or auto")
    available = device.type == "cpu" or (device.index or 0) < torch.cuda.device_count()
    require(available, "device", name, "this machine has no such device: use cpu")
    return device


def check_writable(folder: Path) -> None:
    """Raise :class:`ConfigError` unless files can be made in ``folder``, which is made if needed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError("results_dir", str(folder), f"a folder that can be written ({error.strerror})") from None
