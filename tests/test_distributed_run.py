"""Runs of several ranks: the numbers of one process, one record, and a rank that is killed."""

import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privbench.benchmarks import rank
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation import distributed
from privbench.benchmarks.progress import Progress
from privbench.benchmarks.run import Outcome, run
from privbench.benchmarks.sweep import compose

SMALL = ["task=digits", "task.records=200", "model=mlp", "federation.clients=6", "federation.rounds=2"]
RANKS = "federation/engine=distributed"
CASES = {
    "sum, backdoor": ["poisoning=model_replacement", "federation=fedadam", "federation.dropout=0.3"],
    "rule, others' updates": ["defense=median", "poisoning=min_max", "poisoning.clients=2"],
    "phases": ["defense=secagg", "defense.channel.late_dropout=0.2", "defense.channel.threshold=0.51"],
    "clipped gradients": ["defense=dp_local", "defense.privacy.epsilon=null", "defense.privacy.noise_multiplier=1"],
    "attacks": [
        "leakage=linear",
        "leakage.victims=2",
        "leakage.adversaries=[server_operator,server_operator+1]",
        "task/partition=quantity",
        "task.partition.sizes=[1,2]",
    ],
    "shadows": ["inference=lira", "inference.shadows=4", "inference.candidates=20"],
}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Launch:
    """Two ranks forked from here, with the environment that torchrun or srun gives them; rank 0 does ``work``."""

    def __init__(self, folder: Path, work: Callable[[], Any], names: tuple[str, str] = ("RANK", "WORLD_SIZE")):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        port, fork = str(free_port()), multiprocessing.get_context("fork")
        self._ranks = []
        for number in range(2):
            own = {names[0]: str(number), names[1]: "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            self._ranks.append(fork.Process(target=self._one, args=(number, work, own)))
        for process in self._ranks:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", category=DeprecationWarning)
                process.start()

    def _one(self, number: int, work: Callable[[], Any], environment: dict[str, str]) -> None:
        here = self.folder / f"rank{number}"
        here.mkdir(exist_ok=True)
        os.chdir(here)
        os.environ.update(environment)
        said = os.open(self.folder / f"rank{number}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        if number:
            rank.work(distributed.Distributed())
        work()
        distributed.leave(0)
        os._exit(0)

    def kill(self, number: int) -> None:
        pid = self._ranks[number].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def statuses(self) -> list[int | None]:
        try:
            for process in self._ranks:
                process.join(60)
            return [process.exitcode for process in self._ranks]
        finally:
            for process in self._ranks:
                process.kill()

    def said(self, number: int) -> str:
        return (self.folder / f"rank{number}.log").read_text()


def do(results: Path, *overrides: str) -> Outcome:
    return run(compose([*SMALL, *overrides, f"results_dir={results}"]), {}, Progress("test"))


def metrics(results: Path) -> list[set[str]]:
    """Each run's, by name."""
    found = results.glob("runs/*/metrics.jsonl")
    return [{json.loads(m)["metric"] for m in p.read_text().splitlines()} for p in found]


def lines(results: Path) -> dict[str, list[str]]:
    """Each run's metrics that must not depend on the machine."""
    apart, found = ("_seconds", "memory_bytes"), results.glob("runs/*/metrics.jsonl")
    rows = {p.parent.name: p.read_text().splitlines() for p in found}
    return {name: [m for m in kept if not json.loads(m)["metric"].endswith(apart)] for name, kept in rows.items()}


def manifest(results: Path) -> dict[str, Any]:
    (path,) = results.glob("runs/*/manifest.json")
    return json.loads(path.read_text())


@pytest.mark.timeout(180)
def test_ranks_have_the_numbers_of_one_process(tmp_path):
    many, one = tmp_path / "many", tmp_path / "one"

    def work() -> None:
        for case in CASES.values():
            assert do(many, *case, RANKS, "federation.engine.chunk=2").how == "ran"
            assert do(many, *case, RANKS).how == "kept", "nobody is asked again"

    started = Launch(tmp_path, work)
    for case in CASES.values():
        assert do(one, *case, "federation.workers=1").status == "complete"
    assert started.statuses() == [0, 0], started.said(0)
    assert started.said(1) == ""
    assert not [*(tmp_path / "rank1").iterdir()], "rank 0 alone writes"
    expected = lines(one)
    assert len(expected) == len(CASES)
    assert all(len(rows) > 10 for rows in expected.values())
    assert lines(many) == expected
    for name in ("cpu_seconds", "peak_memory_bytes"):
        assert all(name in run for run in metrics(one))
        assert not any(name in run for run in metrics(many)), "rank 0's alone is no round's"
    for path in many.glob("runs/*/manifest.json"):
        found = json.loads(path.read_text())
        assert (found["status"], found["machine"]["workers"], found["isolation"]) == ("complete", 2, "same_process")


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def reached(results: Path, round: int) -> bool:
    found = [*results.glob("runs/*/metrics.jsonl")]
    return bool(found) and f'"round": {round},' in found[0].read_text()


@pytest.mark.timeout(120)
def test_a_killed_rank_is_recorded_by_name_and_the_run_resumes(tmp_path):
    results, long = tmp_path / "many", "federation.rounds=40"
    started = Launch(tmp_path, lambda: do(results, RANKS, long))
    wait_for(lambda: reached(results, 3))
    started.kill(1)
    started.statuses()
    name = f"rank 1 of 2 ({socket.gethostname()})"
    reason = f"RankLost: {name} is gone: its process ended (killed, or out of memory)"
    assert (manifest(results)["status"], manifest(results)["error"]) == ("failed", reason)
    again = Launch(tmp_path, lambda: do(results, RANKS, long))
    do(tmp_path / "one", long)
    assert again.statuses() == [0, 0], again.said(0)
    assert (manifest(results)["status"], manifest(results)["resumed"]) == ("complete", 1)
    assert lines(results) == lines(tmp_path / "one")
    kept = Launch(tmp_path, lambda: do(results, RANKS, long))
    assert kept.statuses() == [0, 0], "nobody waits for work that there isn't"
    assert kept.said(1) == ""


@pytest.mark.timeout(120)
def test_a_rank_without_the_data_is_named(tmp_path):
    def work() -> None:
        prepared = compose([*SMALL, RANKS, f"results_dir={tmp_path / 'many'}"])
        prepared.config["task"]["source"]["_target_"] = "privbench.benchmarks.tasks.sources.Missing"
        run(prepared, {}, Progress("test"))

    assert Launch(tmp_path, work).statuses() == [0, 0]
    name = f"ClientFailed: rank 1 of 2 ({socket.gethostname()}): ConfigError: task.source._target_=privbench"
    assert manifest(tmp_path / "many")["error"].startswith(name)


@pytest.mark.timeout(60)
def test_a_lost_coordinator_is_named_by_the_others(tmp_path):
    results = tmp_path / "many"
    srun = ("SLURM_PROCID", "SLURM_NTASKS")
    started = Launch(tmp_path, lambda: do(results, RANKS, "federation.rounds=1000"), srun)
    wait_for(lambda: reached(results, 1))
    started.kill(0)
    assert started.statuses() == [-signal.SIGKILL, 1]
    host = socket.gethostname()
    assert started.said(1).startswith(f"privbench: rank 1 of 2 ({host}): rank 0 of 2 ({host}) is gone: its process")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["federation.clients=1"], "WORLD_SIZE=2: at most 1, the number of clients"),
        (["federation.workers=2"], "federation.workers=2: null with federation/engine=distributed"),
        (["defense=tee"], "defense.channel=attested: plaintext or secagg with federation/engine=distributed"),
        (["federation.engine.chunk=0"], "federation.engine.chunk=0: at least 1"),
        (["federation.engine.timeout=0"], "federation.engine.timeout=0.0: seconds, more than 0"),
    ],
)
def test_what_cannot_work_is_refused_by_name(tmp_path, monkeypatch, changed, message):
    for key, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ConfigError, match=re.escape(message)):
        compose([*SMALL, RANKS, *changed, f"results_dir={tmp_path}"])


def torchrun(folder: Path, nodes: int, *arguments: str) -> list[subprocess.Popen[str]]:
    """A command under torchrun, on so many nodes of one rank, or on one node with two."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc-per-node={3 - nodes}"]
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--local-addr=127.0.0.1"]
    asked = [*torchrun, *meeting, "-m", "privbench.benchmarks.cli", "run", *arguments]
    pipe = subprocess.PIPE
    return [subprocess.Popen(asked, cwd=folder, stdout=pipe, stderr=pipe, text=True) for _ in range(nodes)]


def ended(nodes: list[subprocess.Popen[str]]) -> tuple[list[int], str]:
    said = ["\n".join(node.communicate(timeout=200)) for node in nodes]
    return [node.returncode for node in nodes], "\n".join(said)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_nodes_of_torchrun_with_a_rank_killed(tmp_path):
    results = tmp_path / "results"
    command = [*SMALL, RANKS, "federation.rounds=60", f"results_dir={results}"]
    nodes = torchrun(tmp_path, 2, *command)
    wait_for(lambda: reached(results, 3), 200)
    os.kill(process_of(1, results), signal.SIGKILL)
    statuses, said = ended(nodes)
    assert statuses == [1, 1], said
    assert manifest(results)["status"] == "failed"
    assert f"failed: RankLost: rank 1 of 2 ({socket.gethostname()}) is gone" in said
    statuses, said = ended(torchrun(tmp_path, 2, *command))
    assert statuses == [0, 0], said
    assert manifest(results)["resumed"] == 1
    do(tmp_path / "one", "federation.rounds=60")
    assert lines(results) == lines(tmp_path / "one")


def process_of(rank: int, results: Path) -> int:
    """The process that torchrun started as this rank."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (entry / "cmdline").read_text(), (entry / "environ").read_text()
        except OSError:
            continue
        ours = f"results_dir={results}" in command and "torch.distributed.run" not in command
        if ours and f"RANK={rank}" in environment.split("\0"):
            return int(entry.name)
    raise AssertionError(f"no rank {rank}")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_under_torchrun_does_only_what_is_missing_and_ends_with_one_table(tmp_path):
    results = tmp_path / "results"
    sweep = ["-m", *SMALL, RANKS, "federation.local.learning_rate=0.1,1e20", "seed=0,1", "name=s"]
    statuses, said = ended(torchrun(tmp_path, 1, *sweep, f"results_dir={results}"))
    assert statuses == [1], said
    assert said.count("4 runs, checked") == 1, "others say nothing"
    index = json.loads((results / "s/sweep.json").read_text())
    assert sorted(r["status"] for r in index["runs"]) == ["complete", "complete", "diverged", "diverged"]
    gone = next(r for r in index["runs"] if r["status"] == "complete")
    for file in ("manifest.json", "checkpoint.pt"):
        (results / "s" / gone["path"] / file).unlink()
    statuses, said = ended(torchrun(tmp_path, 1, *sweep, f"results_dir={results}"))
    assert statuses == [1], said
    assert said.count("before, kept") == 3


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "federation.engine=processes: distributed under torchrun"),
        (["-m", RANKS, "hydra/launcher=joblib", "seed=0,1"], "hydra/launcher=joblib: basic with federation/engine"),
    ],
)
def test_torchrun_refuses_once(tmp_path, arguments, message):
    statuses, said = ended(torchrun(tmp_path, 1, *SMALL, *arguments, f"results_dir={tmp_path}/results"))
    assert statuses == [1], "torchrun's own"
    assert said.count("privbench: ") == said.count(f"privbench: {message}") == 1
    assert not (tmp_path / "results/runs").exists()
