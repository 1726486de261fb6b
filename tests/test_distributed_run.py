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

import pytest

from privbench.benchmarks import cli

SMALL = ["task=digits", "task.records=200", "model=mlp", "federation.clients=5", "federation.rounds=2"]
RANKS = "federation/engine=distributed"
CASES = {
    "sum, backdoor": ["poisoning=model_replacement", "federation=fedadam", "federation.dropout=0.3"],
    "rule, others' updates": ["defense=median", "poisoning=min_max", "poisoning.clients=2"],
    "phases": ["defense=secagg", "defense.channel.late_dropout=0.2", "federation.clients=6"],
    "clipped gradients": ["defense=dp_local", "defense.privacy.epsilon=null", "defense.privacy.noise_multiplier=1"],
    "attacks": [
        "leakage=inverting_gradients",
        "leakage.attack.iterations=5",
        "leakage.victims=2",
        "leakage.adversaries=[server_operator,server_operator+1]",
        "task/partition=quantity",
        "task.partition.sizes=[1,2]",
    ],
}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Launch:
    """Ranks of one command, forked from here as torchrun would start them, each in a folder of its own."""

    def __init__(self, folder: Path, world: int, *arguments: str, **environment: str):
        self.folder, self._ranks = folder, []
        port = str(free_port())
        for rank in range(world):
            own = {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            process = multiprocessing.get_context("fork").Process(
                target=self._one, args=(rank, [*arguments], {**own, **environment})
            )
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", category=DeprecationWarning)
                process.start()
            self._ranks.append(process)

    def _one(self, rank: int, arguments: list[str], environment: dict[str, str]) -> None:
        here = self.folder / f"rank{rank}"
        here.mkdir(parents=True, exist_ok=True)
        os.chdir(here)
        os.environ.update(environment)
        said = os.open(self.folder / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        cli.main(arguments)

    def kill(self, rank: int) -> None:
        os.kill(self._ranks[rank].pid, signal.SIGKILL)

    def statuses(self) -> list[int]:
        try:
            for process in self._ranks:
                process.join(60)
            return [process.exitcode for process in self._ranks]
        finally:
            for process in self._ranks:
                process.kill()

    def said(self, rank: int) -> str:
        return (self.folder / f"rank{rank}.log").read_text()


def lines(results: Path) -> list[str]:
    """Metrics of the one run, but for times and for sizes of ciphertexts."""
    (path,) = results.glob("runs/*/metrics.jsonl")
    return [line for line in path.read_text().splitlines() if "_seconds" not in line]


def manifest(results: Path) -> dict:
    (path,) = results.glob("runs/*/manifest.json")
    return json.loads(path.read_text())


def alone(results: Path, *arguments: str) -> None:
    started = Launch(results.parent, 1, "run", *arguments, "federation.workers=1", f"results_dir={results}")
    assert started.statuses() == [0], started.said(0)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("case", CASES)
def test_ranks_have_the_numbers_of_one_process(tmp_path, case):
    results = tmp_path / "results"
    started = Launch(tmp_path, 2, "run", *SMALL, *CASES[case], RANKS, f"results_dir={results}")
    assert started.statuses() == [0, 0], started.said(0)
    assert started.said(1) == ""
    assert not [*(tmp_path / "rank1").iterdir()]
    found = manifest(results)
    assert (found["machine"]["workers"], found["isolation"]) == (2, "same_process")
    alone(tmp_path / "one", *SMALL, *CASES[case])
    assert [p.name for p in (tmp_path / "one/runs").iterdir()] == [found["id"]], "no part of a run's name"
    assert lines(results) == lines(tmp_path / "one")
    assert len(lines(results)) > 10


@pytest.mark.timeout(120)
def test_a_sweep_of_ranks_does_only_what_is_missing_and_goes_on_after_a_failure(tmp_path):
    results = tmp_path / "results"
    sweep = ["run", "-m", *SMALL, RANKS, "federation.local.learning_rate=0.1,1e20", "seed=0,1", "name=s"]
    started = Launch(tmp_path, 2, *sweep, f"results_dir={results}")
    assert started.statuses() == [1, 0], started.said(0)
    index = json.loads((results / "s/sweep.json").read_text())
    assert sorted(r["status"] for r in index["runs"]) == ["complete", "complete", "diverged", "diverged"]
    gone = next(r for r in index["runs"] if r["status"] == "complete")
    (results / "s" / gone["path"] / "manifest.json").unlink()
    (results / "s" / gone["path"] / "checkpoint.pt").unlink()
    again = Launch(tmp_path, 2, *sweep, f"results_dir={results}")
    assert again.statuses() == [1, 0], again.said(0)
    assert again.said(0).count("before, kept") == 3
    assert again.said(1) == ""


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def reached(results: Path, round: int) -> bool:
    found = [*results.glob("runs/*/metrics.jsonl")]
    return bool(found) and f'"round": {round},' in found[0].read_text()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_stops_the_run_by_name_and_the_same_command_resumes(tmp_path, victim):
    results = tmp_path / "results"
    command = ["run", *SMALL, "federation.rounds=40", f"results_dir={results}"]
    started = Launch(tmp_path, 2, *command, RANKS)
    wait_for(lambda: reached(results, 3))
    started.kill(victim)
    statuses = started.statuses()
    assert (statuses[victim], statuses[1 - victim]) == (-signal.SIGKILL, 1)
    assert f"rank {victim} of 2 ({socket.gethostname()}) is gone" in started.said(1 - victim)
    found = manifest(results)
    assert found["status"] == ("failed" if victim else "running")
    assert ("rank 1 of 2" in (found["error"] or "")) == bool(victim)
    again = Launch(tmp_path, 2, *command, RANKS)
    assert again.statuses() == [0, 0], again.said(0)
    assert (manifest(results)["status"], manifest(results)["resumed"]) == ("complete", 1)
    alone(tmp_path / "one", *command[:-1])
    assert lines(results) == lines(tmp_path / "one")


@pytest.mark.parametrize(
    ("changed", "environment", "message"),
    [
        (["federation.clients=1"], {}, "WORLD_SIZE=2: at most 1, the number of clients"),
        (["federation.workers=2"], {}, "federation.workers=2: null with federation/engine=distributed"),
        (["defense=tee"], {}, "defense.channel=attested: plaintext or secagg with federation/engine=distributed"),
        (["-m", "hydra/launcher=joblib", "seed=0,1"], {}, "hydra/launcher=joblib: basic with federation/engine"),
        (["federation/engine=processes"], {"TORCHELASTIC_RUN_ID": "x"}, "federation.engine=processes: distributed"),
        ([], {"MASTER_PORT": ""}, "federation.engine=distributed: .*not set: MASTER_PORT"),
        (["federation.engine.chunk=0"], {}, "federation.engine.chunk=0: at least 1"),
    ],
)
def test_what_cannot_work_is_refused_by_rank_0_alone(tmp_path, changed, environment, message):
    arguments = ["run", *SMALL, RANKS, *changed, "federation.engine.meeting=1", f"results_dir={tmp_path}/results"]
    if changed == ["federation/engine=processes"]:
        arguments = [a for a in arguments if a != RANKS and "meeting" not in a]
    started = Launch(tmp_path, 2, *arguments, **environment)
    first, other = started.statuses()
    assert first == 2
    assert other in (1, 2)
    assert re.search(message, started.said(0)), started.said(0)
    assert "Traceback" not in started.said(0) + started.said(1)
    assert not (tmp_path / "results/runs").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_nodes_of_torchrun_with_a_rank_killed(tmp_path):
    results, port = tmp_path / "results", free_port()
    command = ["run", *SMALL, "federation.rounds=60", f"results_dir={results}"]
    node = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
    node += ["--local-addr=127.0.0.1", "-m", "privbench.benchmarks.cli", *command, RANKS]

    def start(port: int) -> list[subprocess.Popen[str]]:
        meeting = [f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=test"]
        asked = [*node[:3], *meeting, *node[3:]]
        pipe = subprocess.PIPE
        return [subprocess.Popen(asked, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]

    nodes = start(port)
    wait_for(lambda: reached(results, 3), 120)
    os.kill(process_of(1, results), signal.SIGKILL)
    ended = [n.communicate(timeout=120) for n in nodes]
    assert [n.returncode for n in nodes] == [1, 1], ended
    assert manifest(results)["status"] == "failed"
    assert "RankLost: rank 1 of 2 (" in manifest(results)["error"]
    nodes = start(free_port())
    ended = [n.communicate(timeout=120) for n in nodes]
    assert [n.returncode for n in nodes] == [0, 0], ended
    assert manifest(results)["resumed"] == 1
    alone(tmp_path / "one", *command[:-1])
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
