"""Jobs: composed and checked before the first one starts."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from privbench.benchmarks.build import ConfigError, require

if TYPE_CHECKING:
    from privbench.benchmarks.experiment import Experiment, Prepared
    from privbench.benchmarks.federation.distributed import Distributed

CONFIG = "config"


@dataclass(frozen=True)
class Job:
    """One run of a sweep, checked.

    Args:
        overrides: what it was composed from.
        id: the run's name.
        path: its directory.
    """

    overrides: list[str]
    id: str
    path: Path


@dataclass(frozen=True)
class Jobs:
    """What a command line asks for.

    Args:
        multirun: whether it is a sweep.
        name: of the sweep.
        results: the results folder.
        jobs: all of them, equal ones once; empty where a sweeper of Hydra's chooses as it goes (each is then checked
            when it starts).
        batches: what Hydra is given to launch them, one batch after another.
        combinations: how many there are with equal ones.
        launcher: Hydra's that launches them, by name.
    """

    multirun: bool
    name: str
    results: Path
    jobs: list[Job]
    batches: list[list[str]]
    combinations: int
    launcher: str


def plan(overrides: list[str], multirun: bool, config_dir: str | None = None) -> Jobs:
    """Compose and build every job of a command line, before the first one starts.

    Raises:
        ConfigError: for the first bad one, with its overrides in a sweep.
    """
    with searching(config_dir) as hydra:
        overrides = _deferred(overrides)
        mode = RunMode.MULTIRUN if multirun else hydra.get_mode(CONFIG, overrides) or RunMode.RUN
        first = _compose(hydra, overrides, mode)
        many = mode is RunMode.MULTIRUN
        batches, sweeps = _expand(first.hydra.sweeper, overrides) if many else ([overrides], [overrides])
        if many:
            _check_launcher(first)
        # Equal jobs are one run: an arm without a guarantee is the same at every epsilon.
        by_id: dict[str, Job] = {}
        for job in sweeps:
            checked = _check(hydra, job, first if many else None)
            by_id.setdefault(checked.id, checked)
        jobs = [*by_id.values()]
        _check_epsilon(sweeps, by_id)
        name = first.get("name") or f"sweep-{sha256(' '.join(sorted(j.id for j in jobs)).encode()).hexdigest()[:8]}"
        launcher = str(first.hydra.runtime.choices["hydra/launcher"])
        return Jobs(many, str(name), Path(first.results_dir), jobs, batches, len(sweeps), launcher)


def distributed(overrides: list[str], multirun: bool, config_dir: str | None = None) -> "Distributed | None":
    """The engine of a command line if it is that of several ranks; nothing else is checked.

    Raises:
        ConfigError: if it can't be composed.
    """
    from privbench.benchmarks.build import build
    from privbench.benchmarks.federation.distributed import Distributed

    with searching(config_dir) as hydra:
        deferred = _deferred(overrides)
        config = plain(_compose(hydra, deferred, RunMode.MULTIRUN if multirun else RunMode.RUN))
        found = build(config["federation"]["engine"], config["trusted_targets"], "federation.engine")
        return found if isinstance(found, Distributed) else None


def compose(overrides: list[str], config_dir: str | None = None) -> "Prepared":
    """One run from Python, checked: ``run(compose(["task=digits", "model=mlp"]), ...)``.

    Raises:
        ConfigError: if it is bad.
    """
    from privbench.benchmarks.experiment import prepare

    with searching(config_dir) as hydra:
        return prepare(plain(_compose(hydra, overrides, RunMode.RUN)))


def divided(overrides: list[str], config_dir: str | None = None) -> tuple["Experiment", int]:
    """What a partition needs of a command line; see :func:`privbench.benchmarks.experiment.divided`.

    Raises:
        ConfigError: if it is bad.
    """
    from privbench.benchmarks import experiment

    with searching(config_dir) as hydra:
        return experiment.divided(plain(_compose(hydra, overrides, RunMode.RUN)))


@contextmanager
def searching(config_dir: str | None, package: str = "privbench.conf") -> Iterator[Hydra]:
    """Hydra over the suite's configuration and the user's; its errors become :class:`ConfigError`."""
    search = create_automatic_config_search_path(None, None, f"pkg://{package}")
    if config_dir:
        folder = Path(config_dir).resolve()
        if not folder.is_dir():
            raise ConfigError("--config-dir", config_dir, "an existing folder of configuration files")
        search.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    try:
        yield Hydra.create_main_hydra2("privbench", search)
    except (HydraException, OmegaConfBaseException) as error:
        raise _translate(error) from None
    finally:
        GlobalHydra.instance().clear()


def _compose(hydra: Hydra, overrides: list[str], mode: RunMode) -> DictConfig:
    """Hydra's composition, in which each of the suite's groups has one option.

    Hydra takes a list of options for a group and merges them, and reports a value that is no name as a traceback.
    """
    from privbench.benchmarks.experiment import GROUPS

    repository = hydra.config_loader.repository  # type: ignore[attr-defined]
    for o in OverridesParser.create().parse_overrides(overrides):
        if o.is_delete() or o.is_sweep_override() or not repository.group_exists(o.key_or_group):
            continue
        several = isinstance(o.value(), list) and o.key_or_group.split("/")[0] not in GROUPS
        if not several and not isinstance(o.value(), str | QuotedString | dict):
            options = hydra.config_loader.get_group_options(o.key_or_group)
            raise ConfigError(o.key_or_group, o.get_value_element_as_str(), f"one of {', '.join(options)}")
    try:
        config = hydra.compose_config(CONFIG, overrides, run_mode=mode, with_log_configuration=False)
    except (ValueError, YAMLError) as error:
        raise ConfigError("configuration", type(error).__name__, " ".join(str(error).split())) from None
    for group in GROUPS:
        chosen = config.hydra.runtime.choices.get(group)
        if config.get(group) and not isinstance(chosen, str):
            raise ConfigError(group, chosen, f"one option of the group, such as {group}=mine in a folder of yours")
    return config


def _deferred(overrides: list[str]) -> list[str]:
    """Settings of a group that is swept, as sweeps over one value.

    Hydra composes a sweep once without what is swept, where the group's default option may not have the key.
    """
    parsed = OverridesParser.create().parse_overrides(overrides)
    swept = {o.key_or_group for o in parsed if o.is_sweep_override()}

    def later(o: Override) -> bool:
        plain = not (o.is_delete() or o.is_sweep_override() or o.is_add())
        return plain and any(o.key_or_group.startswith(f"{group}.") for group in swept)

    return [f"{o.key_or_group}=choice({str(o.input_line).partition('=')[2]})" if later(o) else str(o.input_line)
            for o in parsed]  # fmt: skip


def _expand(sweeper: DictConfig, overrides: list[str]) -> tuple[list[list[str]], list[list[str]]]:
    """What to give Hydra, batch by batch, and the jobs that its basic sweeper will make of it.

    An experiment's own parameters give way to the same keys on the command line, as any other value does; Hydra
    would sweep over both. A sweeper that chooses as it goes gets the command line as it is, and no jobs are known.
    """
    if not str(sweeper._target_).endswith("BasicSweeper"):
        return [overrides], []
    parser = OverridesParser.create()
    # Of two values for one key the last one holds, as in a single run; Hydra would sweep over both.
    given = {o.key_or_group: str(o.input_line) for o in parser.parse_overrides(overrides)}
    params = {str(k): v for k, v in (sweeper.get("params") or {}).items()}
    mine = [o for o in given.values() if not o.startswith("hydra.sweeper.params")]
    swept = [f"{k}={v}" for k, v in params.items() if k not in given] + mine
    batches = [[o for o in batch if not o.startswith("hydra")] for batch in _by_repeat(swept)]
    split = [BasicSweeper.split_arguments(parser.parse_overrides(batch), None) for batch in batches]
    jobs = [job for parts in split for part in parts for job in part]
    hydras = [o for o in swept if o.startswith("hydra")]
    return [["hydra.sweeper.params=null", *hydras, *batch] for batch in batches], jobs


def _by_repeat(swept: list[str]) -> list[list[str]]:
    """A sweep over ``repeat`` as one sweep each, every other one from its end to its beginning (A B, B A).

    Whatever the machine does meanwhile, if it changes steadily, then favours no job.
    """
    parsed = OverridesParser.create().parse_overrides(swept)
    repeats = next((o for o in parsed if o.key_or_group == "repeat" and o.is_discrete_sweep()), None)
    if repeats is None:
        return [swept]
    others = [o for o in parsed if o is not repeats]
    return [
        [f"repeat={value}", *(_reversed(o) if number % 2 else str(o.input_line) for o in others)]
        for number, value in enumerate(repeats.sweep_string_iterator())
    ]


def _reversed(override: Override) -> str:
    if not override.is_discrete_sweep():
        return str(override.input_line)
    return f"{override.get_key_element()}={','.join([*override.sweep_string_iterator()][::-1])}"


def _check(hydra: Hydra, overrides: list[str], sweep: DictConfig | None) -> Job:
    """One job, of ``sweep`` if it is in one: its results lie where the sweep's index looks for them."""
    from privbench.benchmarks.experiment import prepare

    try:
        config = _compose(hydra, overrides, RunMode.RUN)
        for key in ("results_dir", "name") if sweep is not None else ():
            if sweep is not None and config.get(key) != sweep.get(key):
                raise ConfigError(key, config.get(key), f"{key} can't be swept: one value for all jobs")
        prepared = prepare(plain(config))
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        translated = error if isinstance(error, ConfigError) else _translate(error)
        if sweep is None:
            raise translated from None
        raise ConfigError(
            translated.field, translated.value, f"{translated.expected} [job: {' '.join(overrides)}]"
        ) from None
    return Job(overrides, prepared.id, prepared.path)


def _check_launcher(first: DictConfig) -> None:
    """Refuse jobs in processes of their own under an engine of ranks, which are one group."""
    basic = first.hydra.launcher._target_.endswith("BasicLauncher")
    several = first.federation.engine._target_.endswith(".Distributed")
    hint = "basic with federation/engine=distributed: its ranks do a sweep's jobs together, one after another"
    require(basic or not several, "hydra/launcher", first.hydra.runtime.choices["hydra/launcher"], hint)


def _check_epsilon(sweeps: list[list[str]], by_id: dict[str, Job]) -> None:
    """Refuse a sweep over ``epsilon`` that no arm takes part in: a curve was asked for, and would be a point."""
    asked = sorted({o.partition("=")[2] for job in sweeps for o in job if o.startswith("epsilon=")})
    taken = {o.partition("=")[2] for job in by_id.values() for o in job.overrides if o.startswith("epsilon=")}
    hint = "values that a defense takes: none of this sweep's has privacy.epsilon: ${epsilon}"
    if len(asked) > 1 and len(taken) == 1:
        raise ConfigError("epsilon", ",".join(asked), hint)


def plain(config: DictConfig) -> dict[str, Any]:
    """The job's own configuration as plain containers, resolved, without Hydra's."""
    own = {k: v for k, v in config.items() if k != "hydra"}
    # Resolved under the whole configuration: interpolations may name any of it.
    resolved = OmegaConf.to_container(OmegaConf.masked_copy(config, [str(k) for k in own]), resolve=True)
    assert isinstance(resolved, dict)
    return {str(k): v for k, v in resolved.items()}


def _translate(error: Exception) -> ConfigError:
    """Hydra's message as one line that names the key, the value and what would be right."""
    text = " ".join(" ".join((str(error), str(error.__cause__ or ""))).split())
    if found := re.search(
        r"Could not find '([\w/]+)/([\w/.-]+)' Available options in '[\w/]+': (.*?) Config search", text
    ):
        return ConfigError(found[1], found[2], f"one of {', '.join(found[3].split())}")
    if found := re.search(r"Ambiguous value for argument '([^=]+)=([^']*)'", text):
        return ConfigError(found[1], found[2], "several values are a sweep: add -m (or quote the value)")
    if found := re.search(r"Could not override '([^']+)'", text):
        return ConfigError(found[1], "...", "no such key; --help lists them (+key=value appends one)")
    if found := re.search(r"Error parsing override '([^']*)'", text):
        return ConfigError("override", found[1], "write it as key=value")
    for noise in ("full_key:", "object_type=", "Set the environment variable"):
        text = text.split(noise)[0]
    return ConfigError("configuration", type(error).__name__, text.strip())
