"""Sweeps whose jobs other processes do: joblib's, and submitit's as on a cluster, with a job killed."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(sys.executable).with_name("privbench")
SMALL = ["task=digits", "task.records=200", "model=mlp", "federation.clients=5", "federation.workers=1"]
LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit": ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10"],
}
NEEDED = {"joblib": "hydra_plugins.hydra_joblib_launcher", "submitit": "hydra_plugins.hydra_submitit_launcher"}


def holder(results: Path, seed: int) -> int | None:
    """The process that has a run's lock and is past its second round."""
    for metrics in results.glob(f"runs/*-s{seed}/metrics.jsonl"):
        if '"round": 2,' not in metrics.read_text():
            return None
        for process in Path("/proc").glob("[0-9]*"):
            try:
                held = {os.readlink(f) for f in (process / "fd").iterdir()}
            except OSError:
                continue
            if str(metrics.with_name(".lock")) in held:
                return int(process.name)
    return None


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_sweep_names_the_job_that_was_killed_and_does_only_what_is_missing(tmp_path, launcher):
    if importlib.util.find_spec(NEEDED[launcher]) is None:
        pytest.skip(f"needs {NEEDED[launcher]}: pip install 'privbench[slurm]'")
    results = tmp_path / "results"
    sweep = [SCRIPT, "run", "-m", *LAUNCHERS[launcher], *SMALL, "federation.rounds=60", "seed=0,1", "name=s"]
    command = [*map(str, sweep), f"results_dir={results}"]
    started = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 200
    while (victim := holder(results, 1)) is None:
        assert time.monotonic() < until
        assert started.poll() is None, started.communicate()
        time.sleep(0.02)
    os.kill(victim, signal.SIGKILL)
    _, said = started.communicate(timeout=200)
    assert started.returncode == 1, said
    assert "Traceback" not in said
    assert "privbench: a job ended without a result: " in said
    (unfinished,) = [
        line for line in said.splitlines() if line.startswith("privbench: unfinished: ") and "seed=1" in line
    ]
    assert unfinished.endswith("  running")

    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    index = json.loads((results / "s/sweep.json").read_text())
    assert [run["status"] for run in index["runs"]] == ["complete"] * 2
    (path,) = results.glob("runs/*-s1/manifest.json")
    assert json.loads(path.read_text())["resumed"] == 1
