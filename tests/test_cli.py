"""The console script: bad input is one line with exit status 2 before any training; what ran is kept."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from privbench.benchmarks import cli
from privbench.benchmarks.results.load import load
from privbench.benchmarks.tasks import picture

SCRIPT = Path(sys.executable).with_name("privbench")
SMALL = ["task=digits", "model=mlp", "federation.clients=4", "federation.rounds=2", "federation.workers=1"]

BAD = [
    (["foo=1"], "foo"),
    (["federation.clients=0"], "federation.clients=0: at least 1"),
    (["federation.clients=abc"], "federation.clients=abc: expected int"),
    (["+federation.foo=1"], "federation.foo=1: unknown field"),
    (["federation.participation=0"], "federation.participation=0.0: a fraction in (0, 1]"),
    (["federation.participation=1.5"], "federation.participation"),
    (["federation.sampling=foo"], "federation.sampling=foo: expected one of fixed, poisson"),
    (["federation.local.learning_rate=0"], "federation.local.learning_rate"),
    (["task/partition=dirichlet", "task.partition.alpha=-1"], "task.partition.alpha=-1.0"),
    (["task=nope"], "task=nope: one of"),
    (["defense=none,dp_local"], "defense=none,dp_local: several values are a sweep: add -m"),
    (["seed=-1"], "seed=-1"),
    (["seed=x"], "seed=x: expected int"),
    (["device=tpu"], "device=tpu"),
    (["poisoning=backdoor", "poisoning.clients=5"], "poisoning.clients=5: at most the number of clients, 4"),
    (["poisoning=backdoor", "task.trigger=null"], "task.trigger"),
    (["poisoning=backdoor", "task.trigger.target=10"], "task.trigger.target=10"),
    (["task.trigger.size=9"], "task.trigger.size=9"),
    (["leakage=dlg", "leakage.rounds=[3]"], "leakage.rounds"),
    (["leakage=dlg", "leakage.victims=[9]"], "leakage.victims"),
    (["leakage=dlg", "leakage.victims=4", "poisoning=backdoor"], "leakage.victims"),
    (["defense=dp_central", "defense.privacy.delta=0.5"], "defense.privacy.delta=0.5: must be below 1/clients"),
    (["defense=dp_central", "defense.privacy.epsilon=-1"], "defense.privacy.epsilon=-1.0"),
    (["defense=dp_central", "defense.privacy.clip=0"], "defense.privacy.clip=0.0"),
    (["defense=dp_central", "defense.aggregation.clip=1"], "defense.aggregation.clip"),
    (["defense=dp_central", "federation.weighting=records"], "federation.weighting=records"),
    (["defense=dp_central", "federation.sampling=fixed", "federation.participation=0.5"], "federation.sampling=fixed"),
    (["model=resnet18", "model.norm=batch", "defense=dp_local"], "GroupNorm"),
    (["task._target_=os.system"], "task._target_=os.system"),
    (["results_dir=/dev/null/x"], "results_dir=/dev/null/x"),
    (["--config-dir", "/nowhere/at/all"], "--config-dir=/nowhere/at/all"),
    (["-m", "seed=0,1", "federation.rounds=2,0"], "federation.rounds=0: at least 1 [job:"),
    (["seed"], "override=seed: write it as key=value"),
    (["task/partition=dirichlet", "task.partition.alpha=inf"], "task.partition.alpha=inf: more than 0, and finite"),
    (["task/partition=quantity", "task.partition.alpha=inf"], "task.partition.alpha=inf: more than 0 and finite"),
    (["task/partition=dirichlet", "task.partition.alpha=nan"], "task.partition.alpha=nan: expected a number"),
    (["task/partition=pathological", "task.partition.classes_per_client=11"], "task.partition.classes_per_client=11"),
    (["task.trigger.colour=nan"], "task.trigger.colour=nan: expected a number"),
    (["task.trigger.colour=[inf]"], "task.trigger.colour=(inf,): finite values"),
    (["leakage=dlg", "leakage.attack.total_variation=inf"], "leakage.attack.total_variation=inf"),
    (["leakage=dlg", "leakage.attack.learning_rate=inf"], "leakage.attack.learning_rate=inf"),
    (["defense=[none,median]"], "defense=[none,median]: one of bucketing,"),
    (["-m", "defense=none,[none,median]"], "defense=[none,median]: one of bucketing,"),
    (["task/partition=[iid,natural]"], "task/partition=[iid,natural]: one of"),
    (["~defense", "+defense._target_=privbench.defenses.Defense"], "defense=None: one option of the group"),
    (["task=null"], "task=null: one of captions_folder, cifar10,"),
    (["defense=null"], "defense=null: one of bucketing,"),
    (["model=null"], "model=null: one of cnn6,"),
    (["federation/server=3"], "federation/server=3: one of adam,"),
    (["model.hidden=[10000000000]"], "model=MLP: a model that can be built"),
    (["model.hidden=16"], "model.hidden=16: expected a list such as [16], got int"),
    (["trusted_targets=torch"], "trusted_targets=torch: expected a list such as [torch], got str"),
    (["-m", "results_dir=ra,rb"], "results_dir=ra: results_dir can't be swept"),
    (["-m", "name=a,b"], "name=a: name can't be swept"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_one_line_that_names_the_field(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", *SMALL, *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_missing_data_names_file_place_and_checksum(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PRIVBENCH_DATA", str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "task=mitbih", "model=signal_cnn", f"results_dir={tmp_path}/r"])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert "mitbih_beats.npz" in error
    assert str(tmp_path) in error
    assert "4e9102dae63663edac9483e697b5d7c9" in error or "c645f54978c7e444" in error


def privbench(*arguments, cwd):
    return subprocess.run([SCRIPT, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=300)


def manifests(folder):
    return [json.loads(p.read_text()) for p in sorted(folder.glob("runs/*/manifest.json"))]


def test_a_sweep_does_only_what_is_missing(tmp_path):
    sweep = ["run", "-m", *SMALL, "defense=none,median", "seed=0,1", "name=s", f"results_dir={tmp_path}/r"]
    first = privbench(*sweep, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"r"}
    assert {p.name for p in (tmp_path / "r").iterdir()} == {"runs", "s"}
    index = json.loads((tmp_path / "r/s/sweep.json").read_text())
    assert [r["status"] for r in index["runs"]] == ["complete"] * 4
    assert (tmp_path / "r/s/table.csv").exists()
    assert "median" in first.stdout

    gone = tmp_path / "r/s" / index["runs"][2]["path"]
    for file in gone.rglob("*"):
        if file.is_file():
            file.unlink()
    again = privbench(*sweep, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("complete before, kept") == 3
    assert len(manifests(tmp_path / "r")) == 4


def test_a_job_that_diverges_is_listed_and_does_not_stop_the_others(tmp_path):
    sweep = ["run", "-m", *SMALL, "federation.local.learning_rate=0.1,1e20", "name=s", f"results_dir={tmp_path}/r"]
    done = privbench(*sweep, cwd=tmp_path)
    assert done.returncode == 1
    assert sorted(m["status"] for m in manifests(tmp_path / "r")) == ["complete", "diverged"]
    assert "diverged" in done.stdout
    assert "Traceback" not in done.stderr
    for path in (tmp_path / "r").glob("runs/*/metrics.jsonl"):
        assert "NaN" not in path.read_text()
        assert "Infinity" not in path.read_text()


def test_joblib_runs_the_same_jobs_and_ends_with_the_table(tmp_path):
    sweep = ["run", "-m", *SMALL, "seed=0,1", "name=s", f"results_dir={tmp_path}/r"]
    done = privbench(*sweep, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "n=2" in done.stdout or "± " in done.stdout or "2" in done.stdout
    assert {m["machine"]["workers"] for m in manifests(tmp_path / "r")} == {1}
    assert [r["status"] for r in json.loads((tmp_path / "r/s/sweep.json").read_text())["runs"]] == ["complete"] * 2


def test_a_user_adds_configuration_with_config_dir(tmp_path):
    folder = tmp_path / "mine" / "defense"
    folder.mkdir(parents=True)
    (folder / "tight.yaml").write_text("defaults:\n  - norm_clipping\n  - _self_\naggregation:\n  clip: 0.05\n")
    done = privbench(
        "run", *SMALL, "defense=tight", "--config-dir", tmp_path / "mine", f"results_dir={tmp_path}/r", cwd="/"
    )
    assert done.returncode == 0, done.stderr
    (manifest,) = manifests(tmp_path / "r")
    assert manifest["choices"]["defense"] == "tight"
    assert manifest["config"]["defense"]["aggregation"]["clip"] == 0.05


def test_a_group_without_a_choice_runs(tmp_path):
    done = privbench("run", *SMALL, "~poisoning", f"results_dir={tmp_path}/r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "digits none poisoning=none seed=0" in done.stderr


def test_control_c_is_one_line_and_the_same_command_resumes(tmp_path):
    command = [SCRIPT, "run", *SMALL, "federation.rounds=1000000", "results_dir=r"]
    # Tests that a shell began in the background ignore the signal, and so would what they start.
    heeding = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heeding) as started:
        try:
            metrics = ()
            deadline = time.monotonic() + 120
            while not metrics and time.monotonic() < deadline:
                time.sleep(0.1)
                metrics = [p for p in tmp_path.glob("r/runs/*/metrics.jsonl") if p.stat().st_size]
            started.send_signal(signal.SIGINT)
            error = started.communicate(timeout=60)[1]
        finally:
            started.kill()
    assert metrics
    assert started.returncode == 130
    assert error.strip().splitlines()[-1] == "privbench: interrupted; the same command resumes"
    assert "Traceback" not in error


def test_a_reader_who_leaves_ends_the_command_without_a_word(monkeypatch, capfd):
    read, write = os.pipe()
    os.close(read)
    answer = ["epsilon", "--sampling-rate", "0.01", "--noise-multiplier", "1", "--steps", "10", "--delta", "1e-5"]
    with os.fdopen(write, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        with pytest.raises(SystemExit) as ended:
            cli.main([*answer, "--accountant", "rdp", "--json"])
    assert ended.value.code == 141
    assert capfd.readouterr() == ("", "")


def test_without_a_stdout_a_command_has_its_status(monkeypatch):
    monkeypatch.setattr(cli, "report", lambda _: 0)
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as ended:
        cli.main(["report"])
    assert ended.value.code == 0


def test_another_broken_pipe_is_no_reader_who_left(monkeypatch):
    def broken(_):
        raise BrokenPipeError("a worker's")

    monkeypatch.setattr(cli, "report", broken)
    with pytest.raises(BrokenPipeError, match="a worker's"):
        cli.main(["report"])


@pytest.mark.parametrize(
    ("overrides", "defense"),
    [
        (["defense=tee", "defense/channel=plaintext"], "tee, plaintext channel"),
        (["defense=median", "defense/channel=plaintext"], "median"),
        (["experiment=mine"], "none, attested channel"),
    ],
)
def test_a_channel_that_is_not_the_defenses_own_is_in_its_label(tmp_path, capsys, overrides, defense):
    folder = tmp_path / "own" / "experiment"
    folder.mkdir(parents=True)
    mine = "# @package _global_\ndefaults:\n  - override /defense/channel: attested\n  - _self_\n"
    (folder / "mine.yaml").write_text(mine)
    given = ["--config-dir", tmp_path / "own", "task.records=60", "federation.rounds=1", f"results_dir={tmp_path}"]
    with pytest.raises(SystemExit, match="0"):
        cli.main(["run", *SMALL, *overrides, *map(str, given)])
    assert defense in capsys.readouterr().out
    (run,) = load(tmp_path).runs
    assert run.defense == defense


def test_run_help_lists_groups_and_choices(tmp_path):
    done = privbench("run", "--help", cwd=tmp_path)
    assert done.returncode == 0
    for word in ("defense: ", "dp_local", "task: ", "pneumoniamnist", "experiment: ", "quickstart", "Exit status"):
        assert word in done.stdout
    assert not list(tmp_path.iterdir())


def test_partition_is_drawn_on_request(tmp_path):
    done = privbench("partition", "task=digits", "task/partition=dirichlet", f"results_dir={tmp_path}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {Path(line).suffix for line in done.stdout.split()} == {".png", ".pdf"}


@pytest.mark.parametrize(("name", "clients"), [("uci_heart", 4), ("mitbih", 22)])
def test_a_partition_needs_no_model_that_fits(name, clients, tmp_path, monkeypatch, capsys):
    if not (Path(os.environ.get("PRIVBENCH_DATA", "")) / name).is_dir():
        pytest.skip(f"needs {name} in PRIVBENCH_DATA")
    drawn = []
    monkeypatch.setattr(picture, "draw", lambda task, clients, seed, stem: drawn.append((clients, seed)) or [stem])
    # A client-level delta that no such federation could have, and a model of images.
    plan = ["defense=dp_central", "defense.privacy.delta=0.5"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["partition", f"task={name}", *plan, "seed=3", f"results_dir={tmp_path}"])
    assert stop.value.code == 0, capsys.readouterr().err
    assert drawn == [(clients, 3)]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task/partition=natural", "task.partition._target_=Natural"),
        ("federation.clients=0", "federation.clients=0: at least 1"),
        ("results_dir=/dev/null/x", "results_dir=/dev/null/x"),
    ],
)
def test_a_partition_that_cannot_be_is_one_line(override, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["partition", "task=digits", f"results_dir={tmp_path}", override])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error
    assert error.count("\n") == 1
