"""What Hydra launches: one job, in this process or in another."""

import sys
from functools import lru_cache
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from privbench.benchmarks.build import ConfigError

_CHANNEL = "defense/channel"


def job(config: DictConfig) -> str:
    """Run one composed configuration; of a single run, print the table and exit with 1 if it failed.

    Returns:
        The run's status.
    """
    from rich.console import Console

    from privbench.benchmarks.experiment import prepare
    from privbench.benchmarks.progress import Progress
    from privbench.benchmarks.results.report import report
    from privbench.benchmarks.run import run
    from privbench.benchmarks.sweep import plain

    hydra = HydraConfig.get()
    single = hydra.mode == RunMode.RUN
    try:
        prepared = prepare(plain(config))
    except ConfigError as error:
        # A sweep's jobs were checked before the first one started, unless its sweeper chooses as it goes.
        print(f"privbench: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    choices = _choices(hydra)
    progress = Progress(_label(choices, prepared.experiment.seed))
    outcome = run(prepared, choices, progress, _parallel_jobs(hydra.launcher))
    done = {"ran": outcome.status, "resumed": f"{outcome.status} (resumed)", "kept": f"{outcome.status} before, kept"}
    note = f": {outcome.note}" if outcome.note else ""
    line = f"{prepared.id}  {_label(choices, prepared.experiment.seed)}  {done[outcome.how]}{note}"
    progress.console.print(line, highlight=False, markup=False)
    if single:
        report(prepared.path, Console())
        if outcome.status != "complete":
            raise SystemExit(1)
    return outcome.status


def _choices(hydra: DictConfig) -> dict[Any, Any]:
    """The option of each group; ``channel`` beside them where it isn't the one that the defense's option has itself."""
    choices = {k: v for k, v in hydra.runtime.choices.items() if not str(k).startswith("hydra/")}
    defense, channel = choices.get("defense"), choices.get(_CHANNEL)
    named = any(o.startswith(_CHANNEL) for o in hydra.overrides.task) or choices.get("experiment")
    if not (defense and channel and named):
        return choices
    where = GlobalHydra.instance().config_loader().get_search_path().get_path()
    own = _own_channel(defense, tuple((one.provider, one.path) for one in where))
    return choices if own == channel else {**choices, "channel": channel}


@lru_cache(maxsize=128)
def _own_channel(defense: str, where: tuple[tuple[str | None, str | None], ...]) -> str | None:
    """The channel of a defense's option. Composing takes as long as a short run, and a sweep asks for it in each job.

    Args:
        where: the search path, which says what option of that name it is.
    """
    from privbench.benchmarks.sweep import CONFIG

    loader = GlobalHydra.instance().config_loader()
    own = loader.load_configuration(CONFIG, [f"defense={defense}"], run_mode=RunMode.RUN)
    return own.hydra.runtime.choices.get(_CHANNEL)


def _label(choices: dict[Any, Any], seed: int) -> str:
    # ``~poisoning`` leaves no choice.
    task, defense, poisoning = (choices.get(group, "none") for group in ("task", "defense", "poisoning"))
    defense += f" {_CHANNEL}={choices['channel']}" if "channel" in choices else ""
    return f"{task} {defense} poisoning={poisoning} seed={seed}"


def _parallel_jobs(launcher: Any) -> int:
    """How many jobs share this machine: joblib's ``n_jobs``; one a machine or an allocation elsewhere."""
    from privbench.benchmarks.federation.processes import cores

    jobs = launcher.get("n_jobs", 1)
    return cores() if jobs is None or jobs < 0 else max(1, int(jobs))
