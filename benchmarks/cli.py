"""The console script. Nothing heavy is imported before a command needs it."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from privbench.benchmarks.sweep import Jobs

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130
READER_LEFT = 141
"""What a shell shows for a process that SIGPIPE ended (128 + 13)."""
RANK_0_FIRST = 30.0
"""Seconds that other ranks wait after bad input, which rank 0 reports."""
COMMANDS = ("run", "report", "partition", "attest", "invert", "epsilon", "noise", "dp", "overhead")
DELEGATED = ("--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--version", "--shell-completion", "-sc")

DESCRIPTION = """\
What does each way of protecting federated learning cost, and what does it stop?

commands:
  run [OVERRIDE ...]        train, attack and measure; any Hydra override, -m for a sweep
  report DIR                draw tables and figures from results alone
  partition [OVERRIDE ...]  draw how a task's records lie with its clients
  attest verify|show|measure|collect
                            AMD SEV-SNP reports: verify, print, expected measurement, get one inside a guest
  attest receipt|decision   signed receipts of a run's rounds, and of single decisions
  attest gpu|bind           GPU attestation tokens, and their bond with a report
  invert --model M --update FILE --shape N,N,N
                            attack a gradient or an update of your own model, from a file
  epsilon --sampling-rate Q --noise-multiplier S --steps T --delta D
  noise --epsilon E --sampling-rate Q --steps T --delta D
                            what noisy steps guarantee, and the noise that a guarantee takes
  dp verify STATEMENT       recompute the epsilon that a private run states
  overhead plan|record|show|compare
                            what confidential computing costs: plan arms, time this machine, compare

examples:
  privbench run experiment=quickstart
  privbench run defense=dp_central defense.privacy.epsilon=4 poisoning=backdoor
  privbench run -m defense=none,dp_local seed=0,1,2
  torchrun --standalone --nproc-per-node=4 -m privbench.benchmarks.cli run federation/engine=distributed
  privbench invert --model mymodels:make --weights w.pt --update gradient.pt --shape 1,28,28 --out found
  privbench run --help      lists configuration groups and their choices
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``privbench``; its exit statuses are those of docs/configuration.md."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="privbench", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("command", nargs="?", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    if options.version:
        from importlib.metadata import version

        print(f"privbench {version('privbench')}")
        return
    if options.command is None:
        parser.print_help()
        raise SystemExit(BAD_INPUT)
    try:
        status = _status(_command(options.command), options.rest)
        if sys.stdout is not None:  # closed from the start
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_left():
            raise
        status = READER_LEFT
    if (distributed := sys.modules.get("privbench.benchmarks.federation.distributed")) is not None:
        distributed.leave(status)
    raise SystemExit(status)


def _status(command: Callable[[list[str]], int], rest: list[str]) -> int:
    try:
        return command(rest)
    except KeyboardInterrupt:
        print("privbench: interrupted; the same command resumes", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)


def _reader_left() -> bool:
    """Whether stdout is a pipe that nobody reads any more (``| head``); then Python's last flush has to go nowhere."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _command(name: str) -> Callable[[list[str]], int]:
    own = {"run": run, "report": report, "partition": partition, "attest": attest, "invert": invert}
    if name in own:
        return own[name]
    if name == "overhead":
        from privbench.benchmarks.overhead.command import overhead

        return overhead
    from privbench.defenses.accounting import command

    return {"epsilon": command.epsilon, "noise": command.noise, "dp": command.dp}[name]


def run(arguments: list[str]) -> int:
    """``privbench run``: every job is composed and checked first, then Hydra launches them."""
    from privbench.benchmarks.federation import launch

    rank = launch.rank()
    if any(a.split("=")[0] in DELEGATED for a in arguments):
        return 0 if rank and launch.by_torchrun() else _hydra(arguments)
    options = _hydra_options("run", arguments)
    from privbench.benchmarks import index, sweep
    from privbench.benchmarks.build import ConfigError

    if rank and (status := _other_rank(options)) is not None:
        return status
    try:
        jobs = sweep.plan(options.overrides, options.multirun, options.config_dir)
        if jobs.multirun:
            index.write_index(jobs)
    except ConfigError as error:
        return _refuse(error)
    flags = ["--multirun"] if jobs.multirun else []
    flags += ["--config-dir", options.config_dir] if options.config_dir else []
    if jobs.multirun:
        equal = f" of {jobs.combinations} combinations, equal ones once" if jobs.combinations > len(jobs.jobs) else ""
        print(f"{len(jobs.jobs)} runs{equal}, checked; results in {jobs.results / jobs.name}", file=sys.stderr)
        return _sweep(flags, jobs)
    return _hydra([*flags, *options.overrides])


def _other_rank(options: argparse.Namespace) -> int | None:
    """A rank beside 0, which trains what rank 0 asks for and says nothing; ``None`` if nobody asked for ranks."""
    from privbench.benchmarks import sweep
    from privbench.benchmarks.build import ConfigError
    from privbench.benchmarks.federation import launch

    try:
        settings = sweep.distributed(options.overrides, options.multirun, options.config_dir)
        if settings is None and launch.by_torchrun() < 2:
            return None  # tasks of srun may be runs of their own; torchrun's are of one
        launch.launched()
    except ConfigError:
        settings = None
    if settings is None:
        # Rank 0 says why. A launcher that sees this process end first ends rank 0 before it can.
        time.sleep(RANK_0_FIRST)
        return BAD_INPUT
    from privbench.benchmarks.federation.meeting import RankLost
    from privbench.benchmarks.rank import work

    try:
        return work(settings)
    except RankLost as error:
        print(f"privbench: {error}", file=sys.stderr)
        return FAILED


def report(arguments: list[str]) -> int:
    """``privbench report DIR``."""
    parser = argparse.ArgumentParser(
        prog="privbench report", description="Draw tables and figures of a run, a sweep or a results folder."
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument(
        "--mixed-revisions", action="store_true", help="let runs of several revisions stand side by side, labelled"
    )
    options = parser.parse_args(arguments)
    from rich.console import Console

    from privbench.benchmarks.results.report import report as draw

    try:
        return draw(options.folder, Console(), options.mixed_revisions).status
    except (OSError, ValueError) as error:
        print(f"privbench: {error}", file=sys.stderr)
        return BAD_INPUT


def partition(arguments: list[str]) -> int:
    """``privbench partition``: the figure of a task's partition, in ``results_dir``."""
    options = _hydra_options("partition", arguments)
    from privbench.benchmarks import sweep
    from privbench.benchmarks.build import ConfigError
    from privbench.benchmarks.tasks.picture import draw

    try:
        experiment, clients = sweep.divided(options.overrides, options.config_dir)
        stem = Path(experiment.results_dir) / f"partition_{experiment.task.spec.name}-s{experiment.seed}"
        written = draw(experiment.task, clients, experiment.seed, stem)
    except ConfigError as error:
        return _refuse(error)
    for path in written:
        print(path)
    return 0


def attest(arguments: list[str]) -> int:
    """``privbench attest``: the verifier of attestation reports."""
    from privbench.defenses.tee import command

    return command.attest(arguments)


def invert(arguments: list[str]) -> int:
    """``privbench invert``: attack what the user brings."""
    from privbench.benchmarks.inversion import command

    return command.invert(arguments)


def _hydra_options(command: str, arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"privbench {command}")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-cd", "--config-dir", metavar="DIR")
    return parser.parse_intermixed_args(arguments)


def _refuse(error: Exception) -> int:
    print(f"privbench: {' '.join(str(error).split())}", file=sys.stderr)
    return BAD_INPUT


def _launch(flags: list[str], jobs: "Jobs") -> int:
    """A sweep's batches one after the other; the last one ends with the table."""
    for last, batch in enumerate(jobs.batches, start=1 - len(jobs.batches)):
        ends = [] if last == 0 else ["hydra.callbacks.sweep.report=false"]
        _hydra([*flags, *batch, *ends, f"name={jobs.name}"])
    return 0


def _sweep(flags: list[str], jobs: "Jobs") -> int:
    """Launch a sweep's jobs; where they run in processes of their own and one is lost, say what hasn't ended."""
    full = os.environ.get("HYDRA_FULL_ERROR")
    if jobs.launcher == "basic" or full == "1":
        return _launch(flags, jobs)
    from privbench.benchmarks import index

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing a traceback
    try:
        return _launch(flags, jobs)
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        print(f"privbench: a job ended without a result: {type(error).__name__}: {reason}", file=sys.stderr)
    finally:
        os.environ["HYDRA_FULL_ERROR"] = full or ""
    folder = jobs.results / jobs.name
    index.close(folder)
    for run in index.unfinished(folder):
        print(f"privbench: unfinished: {run}", file=sys.stderr)
    print("privbench: the same command does what is missing", file=sys.stderr)
    return FAILED


def _hydra(arguments: list[str]) -> int:
    import hydra

    from privbench.benchmarks.job import job

    sys.argv = ["privbench run", *arguments]
    hydra.main(version_base="1.3", config_path="pkg://privbench.conf", config_name="config")(job)()
    return 0


if __name__ == "__main__":
    main()
