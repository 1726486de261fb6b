"""A run, from its configuration to its record: killed, resumed, kept, repeated, failed and diverged."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from privbench.attacks.poisoning import Poisoner
from privbench.benchmarks.progress import Progress
from privbench.benchmarks.results.load import load
from privbench.benchmarks.results.record import Record
from privbench.benchmarks.results.table import table
from privbench.benchmarks.run import Outcome, run
from privbench.benchmarks.sweep import compose
from privbench.defenses.accounting.verification import verify

SMALL = ["task=digits", "task.records=200", "model=mlp", "federation.clients=5", "federation.workers=1"]
LEAKAGE = [
    "leakage=inverting_gradients",
    "leakage.attack.iterations=20",
    "leakage.victims=2",
    "leakage.rounds=[1,4]",
    "task/partition=quantity",
    "task.partition.sizes=[1,2]",
]


def do(folder: Path, *overrides: str, progress: Progress | None = None, **changes: Any) -> tuple[Outcome, Path]:
    prepared = compose([*SMALL, *overrides, f"results_dir={folder}"])
    prepared = replace(prepared, **{k: v(prepared) for k, v in changes.items()})
    outcome = run(prepared, {"task": "digits"}, progress or Progress("test"))
    return outcome, prepared.path


def lines(path: Path) -> list[str]:
    """The metric lines that must not depend on the machine."""
    kept = (path / "metrics.jsonl").read_text().splitlines()
    return [line for line in kept if not json.loads(line)["metric"].endswith(("_seconds", "memory_bytes"))]


def manifest(path: Path) -> dict[str, Any]:
    return json.loads((path / "manifest.json").read_text())


class Killer(Progress):
    """Kills its own process after a round's checkpoint."""

    def __init__(self, at: int):
        super().__init__("killer")
        self.at = at

    def round(self, number, rows):
        if number == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


class Counter(Progress):
    def __init__(self):
        super().__init__("counter")
        self.rounds: list[int] = []

    def round(self, number, rows):
        self.rounds.append(number)


def killed(folder: Path, *overrides: str, at: int = 2, before_checkpoint: bool = False) -> None:
    """Do a run in a process that dies by SIGKILL in round ``at``."""

    def child() -> None:
        if before_checkpoint:
            original = Record.checkpoint

            def checkpoint(self, state):
                if state.round == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                original(self, state)

            Record.checkpoint = checkpoint
        do(folder, *overrides, progress=Killer(at))

    process = multiprocessing.get_context("fork").Process(target=child)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


CASES = {
    "leakage": [*LEAKAGE, "federation.rounds=4"],
    "dp_local": ["defense=dp_local", "defense.privacy.delta=1e-3", "federation.rounds=3"],
    "dp_central": ["defense=dp_central", "federation.participation=0.6", "federation.rounds=4"],
    "dp_local_client": ["defense=dp_local_client", "federation.participation=0.6", "federation.rounds=3"],
    "distributed": ["defense=dp_local_client", "defense.privacy.noise=distributed", "federation.rounds=3"],
    "backdoor": ["poisoning=model_replacement", "federation=fedadam", "federation.dropout=0.3", "federation.rounds=3"],
    "fedavgm": ["federation=fedavgm", "federation.participation=0.5", "federation.rounds=4"],
}


@pytest.mark.parametrize("before_checkpoint", [False, True], ids=["after", "before"])
@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_resumes_to_identical_metrics(tmp_path, case, before_checkpoint):
    undisturbed, path = do(tmp_path / "a", *CASES[case])
    assert (undisturbed.status, undisturbed.how) == ("complete", "ran")
    killed(tmp_path / "b", *CASES[case], before_checkpoint=before_checkpoint)
    counter = Counter()
    resumed, other = do(tmp_path / "b", *CASES[case], "federation.workers=2", progress=counter)
    assert (resumed.status, resumed.how) == ("complete", "resumed")
    assert counter.rounds[0] == (2 if before_checkpoint else 3)
    assert path.name == other.name, "workers and folders are no part of a run's name"
    assert lines(path) == lines(other)
    assert manifest(path)["privacy"] == manifest(other)["privacy"], "the ledger covers resumed rounds"
    assert (manifest(path)["resumed"], manifest(other)["resumed"]) == (0, 1)
    artifacts = [sorted(f.name for f in (p / "artifacts").glob("*")) for p in (path, other)]
    assert artifacts[0] == artifacts[1]


def test_shares_of_noise_into_an_attested_aggregator_resume_too(tmp_path):
    case = ["defense=tee_dp_distributed", "federation.rounds=3"]
    _, path = do(tmp_path / "a", *case)
    killed(tmp_path / "b", *case)
    outcome, other = do(tmp_path / "b", *case)
    assert (outcome.status, outcome.how) == ("complete", "resumed")
    assert lines(path) == lines(other)
    assert manifest(path)["privacy"] == manifest(other)["privacy"]
    assert manifest(other)["assurance"] == "software"


@pytest.mark.parametrize("case", ["dp_central", "dp_local", "dp_local_client"])
def test_a_round_done_again_with_fresh_noise_is_a_second_release(tmp_path, case):
    """Its first attempt may have been read, and nobody can draw that noise again."""
    fresh = [*CASES[case], "defense.privacy.noise_source=system", "federation.rounds=3"]
    undisturbed = manifest(do(tmp_path / "a", *fresh)[1])["privacy"]
    killed(tmp_path / "b", *fresh, before_checkpoint=True)
    killed(tmp_path / "b", *fresh, before_checkpoint=True)
    (path,) = (tmp_path / "b" / "runs").iterdir()
    first, second = json.loads((path / "attempts.json").read_text())["invited"]
    assert case == "dp_local" or first != second, "another sample: the same one with other noise would cost more"
    outcome, _ = do(tmp_path / "b", *fresh)
    assert (outcome.status, outcome.how) == ("complete", "resumed")
    paths = [path / "artifacts" / f"privacy_{name}.json" for name in ("statement", "opening")]
    statement, opening = (json.loads(p.read_text()) for p in paths)
    assert (statement["ledger"]["rounds"], statement["ledger"]["charges"]) == (3, 5)
    assert [c for c in verify(statement, opening) if c.fault] == []
    for stated, without in zip(manifest(path)["privacy"], undisturbed, strict=True):
        assert stated["epsilon"] is None or stated["epsilon"] > without["epsilon"]


def test_lost_attempts_that_take_the_rest_of_a_budget_stop_the_run(tmp_path):
    fresh = [*CASES["dp_central"], "defense.privacy.noise_source=system", "defense.privacy.budget=8"]
    killed(tmp_path, *fresh, at=3, before_checkpoint=True)
    killed(tmp_path, *fresh, at=3, before_checkpoint=True)
    outcome, path = do(tmp_path, *fresh)
    assert outcome.status == "failed"
    assert "attempts at round 3 that were cut off took what was left of the privacy budget" in (outcome.note or "")
    assert manifest(path)["privacy"] is None


def test_without_its_checkpoint_a_run_whose_noise_was_fresh_states_nothing(tmp_path):
    fresh = [*CASES["dp_central"], "defense.privacy.noise_source=system"]
    killed(tmp_path, *fresh, at=3, before_checkpoint=True)
    (path,) = (tmp_path / "runs").iterdir()
    (path / "checkpoint.pt").unlink()
    outcome, _ = do(tmp_path, *fresh)
    assert outcome.status == "failed"
    assert "round 3 had begun, and the checkpoint ends at round 0" in (outcome.note or "")
    (path / "attempts.json").write_text("[")
    assert "can't be read" in (do(tmp_path, *fresh)[0].note or "")
    assert do(tmp_path, *fresh, "rerun=all")[0].status == "complete"


def test_without_its_attempts_a_run_whose_noise_was_fresh_states_nothing(tmp_path):
    """Whether the round after the checkpoint was begun is known from them alone."""
    fresh = [*CASES["dp_central"], "defense.privacy.noise_source=system"]
    killed(tmp_path, *fresh, at=3, before_checkpoint=True)
    (path,) = (tmp_path / "runs").iterdir()
    (path / "attempts.json").unlink()
    outcome, _ = do(tmp_path, *fresh)
    assert outcome.status == "failed"
    assert "doesn't hold the attempts at round 2 or 3: no epsilon can be stated" in (outcome.note or "")
    assert manifest(path)["privacy"] is None


def test_killed_twice_and_in_the_first_round(tmp_path):
    case = CASES["dp_central"]
    _, path = do(tmp_path / "a", *case)
    killed(tmp_path / "b", *case, at=1, before_checkpoint=True)
    killed(tmp_path / "b", *case, at=1)
    killed(tmp_path / "b", *case, at=3)
    outcome, other = do(tmp_path / "b", *case)
    assert outcome.how == "resumed"
    assert lines(path) == lines(other)
    assert manifest(path)["privacy"] == manifest(other)["privacy"]


@pytest.mark.parametrize("case", ["leakage", "dp_local"])
def test_metrics_do_not_depend_on_workers(tmp_path, case):
    found = [do(tmp_path / str(w), *CASES[case], f"federation.workers={w}")[1] for w in (1, 2, 3)]
    assert lines(found[0]) == lines(found[1]) == lines(found[2])
    assert any(json.loads(line)["metric"] == "accuracy" for line in lines(found[0]))


def test_a_finished_run_is_kept_and_repeated_when_asked(tmp_path):
    first, path = do(tmp_path, "federation.rounds=2")
    before = (path / "metrics.jsonl").read_bytes()
    counter = Counter()
    kept, _ = do(tmp_path, "federation.rounds=2", progress=counter)
    assert (kept.status, kept.how, counter.rounds) == ("complete", "kept", [])
    assert (path / "metrics.jsonl").read_bytes() == before
    again, _ = do(tmp_path, "federation.rounds=2", "rerun=all", progress=counter)
    assert (again.how, counter.rounds) == ("ran", [1, 2])
    assert first.status == again.status == "complete"


@pytest.mark.parametrize("status", ["running", "failed"])
def test_rerun_all_starts_anew_what_did_not_finish(tmp_path, status):
    killed(tmp_path, "federation.rounds=3")
    (path,) = (tmp_path / "runs").iterdir()
    (path / "manifest.json").write_text(json.dumps({**manifest(path), "status": status}))
    counter = Counter()
    outcome, _ = do(tmp_path, "federation.rounds=3", "rerun=all", progress=counter)
    assert (outcome.status, outcome.how, counter.rounds) == ("complete", "ran", [1, 2, 3])


def test_stale_repeats_runs_of_another_revision_alone(tmp_path):
    _, path = do(tmp_path, "federation.rounds=1")
    assert do(tmp_path, "federation.rounds=1", "rerun=stale")[0].how == "kept"
    wheel = {"commit": None, "version": "0.0.9", "dirty": False}
    others = (({"commit": "0" * 40, "dirty": False}, "0" * 12), (wheel, "0.0.9"), (None, "unknown"))
    for commit, named in others:
        (path / "manifest.json").write_text(json.dumps({**manifest(path), "revision": commit}))
        kept, _ = do(tmp_path, "federation.rounds=1")
        assert kept.note is not None
        assert kept.how == "kept"
        assert f"({named})" in kept.note
        assert do(tmp_path, "federation.rounds=1", "rerun=stale")[0].how == "ran"


def test_what_another_revision_began_is_started_anew_and_that_is_said(tmp_path):
    killed(tmp_path, "federation.rounds=3")
    (path,) = (tmp_path / "runs").iterdir()
    other = {"commit": "0" * 40, "dirty": False}
    (path / "manifest.json").write_text(json.dumps({**manifest(path), "revision": other}))
    counter = Counter()
    outcome, _ = do(tmp_path, "federation.rounds=3", progress=counter)
    assert (outcome.status, outcome.how, counter.rounds) == ("complete", "ran", [1, 2, 3])
    assert outcome.note == manifest(path)["dropped"] == f"another revision ({'0' * 12}) had begun it: started anew"
    notes = table(load(path)).notes
    assert f"begun by another revision, and started anew: {path.name}." in notes
    assert manifest(do(tmp_path, "federation.rounds=2")[1])["dropped"] is None


def test_divergence_is_a_status_and_never_a_number(tmp_path):
    overrides = ["federation.rounds=6", "federation.local.learning_rate=1e12"]
    outcome, path = do(tmp_path, *overrides)
    assert outcome.status == manifest(path)["status"] == "diverged"
    assert outcome.note == manifest(path)["error"]
    text = (path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    for line in text.splitlines():
        json.loads(line, parse_constant=lambda c: pytest.fail(f"{c} in metrics.jsonl"))
    kept, _ = do(tmp_path, *overrides)
    assert (kept.status, kept.how) == ("diverged", "kept")
    assert "rerun=all" in (kept.note or "")
    assert do(tmp_path, *overrides, "rerun=all")[0].how == "ran"


@dataclass(frozen=True)
class Broken(Poisoner):
    """Raises in its first round, as a faulty extension would."""

    def craft(self, update, seen, generator):
        raise ZeroDivisionError("the poisoner broke")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_client_is_recorded(tmp_path, workers):
    asked = ["federation.rounds=2", f"federation.workers={workers}"]
    outcome, path = do(tmp_path, *asked, federation=lambda p: replace(p.federation, poisoner=Broken()))
    assert outcome.status == manifest(path)["status"] == "failed"
    assert "ZeroDivisionError: the poisoner broke" in manifest(path)["error"]
    assert manifest(path)["error"] == outcome.note
    assert "in craft" in (path / "traceback.txt").read_text()
    # failed runs are tried again without being asked, and leave no trace of the failure
    again, _ = do(tmp_path, *asked)
    assert (again.status, again.how) == ("complete", "ran")
    assert manifest(path)["error"] is None
    assert not (path / "traceback.txt").exists()


@dataclass(frozen=True)
class Suicidal(Poisoner):
    def craft(self, update, seen, generator):
        os.kill(os.getpid(), signal.SIGKILL)
        return update


@pytest.mark.timeout(120)
def test_a_killed_worker_is_recorded(tmp_path):
    outcome, path = do(
        tmp_path, "federation.workers=2", federation=lambda p: replace(p.federation, poisoner=Suicidal())
    )
    assert outcome.status == "failed"
    assert "died with exit code -9" in manifest(path)["error"]


@pytest.mark.parametrize(
    "torn", ["manifest", "manifest_other", "checkpoint", "checkpoint_empty", "metrics", "no_metrics"]
)
def test_torn_files_do_not_stop_a_run(tmp_path, torn):
    case = CASES["dp_central"]
    _, path = do(tmp_path / "a", *case)
    killed(tmp_path / "b", *case, at=3)
    other = tmp_path / "b" / "runs" / path.name
    file = {"m": "manifest.json", "c": "checkpoint.pt"}[torn[0]] if "metrics" not in torn else "metrics.jsonl"
    whole = (other / file).read_bytes()
    if torn == "no_metrics":
        (other / file).unlink()
    else:
        part = {"checkpoint_empty": b"", "manifest_other": b"[1]"}.get(torn, whole[: len(whole) // 2])
        (other / file).write_bytes(part)
    outcome, _ = do(tmp_path / "b", *case)
    assert outcome.status == "complete"
    assert lines(path) == lines(other)
    assert manifest(path)["privacy"] == manifest(other)["privacy"]
    assert outcome.how == ("resumed" if torn.startswith("manifest") else "ran")


def test_a_finished_run_with_a_torn_manifest_is_not_trained_again(tmp_path):
    _, path = do(tmp_path, "defense=dp_central", "federation.rounds=2")
    before, privacy = lines(path), manifest(path)["privacy"]
    (path / "manifest.json").write_text('{"schema": 1, "sta')
    counter = Counter()
    outcome, _ = do(tmp_path, "defense=dp_central", "federation.rounds=2", progress=counter)
    assert (outcome.status, counter.rounds) == ("complete", [])
    assert lines(path) == before
    assert manifest(path)["privacy"] == privacy


def test_metrics_of_a_run(tmp_path):
    _, path = do(tmp_path, *CASES["leakage"], "poisoning=backdoor", "federation.evaluate_every=3")
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert all({"metric", "round", "client", "adversary", "value"} <= set(row) for row in rows)
    by_name: dict[str, list[Any]] = {}
    for row in rows:
        by_name.setdefault(row["metric"], []).append(row)
    assert [r["round"] for r in by_name["accuracy"]] == [3, 4]
    assert [r["round"] for r in by_name["round_seconds"]] == [1, 2, 3, 4]
    assert [r["round"] for r in by_name["asr"]] == [3, 4]
    assert "false_trigger_rate" not in by_name
    assert {(r["round"], r["client"], r["adversary"]) for r in by_name["psnr_db"]} == {
        (r, c, "server_operator") for r in (1, 4) for c in (0, 1)
    }
    assert [r["value"] for r in by_name["participants"]] == [5] * 4
    assert [r["value"] for r in by_name["dropped"]] == [0] * 4


def test_epsilon_names_its_adversary(tmp_path):
    _, path = do(tmp_path, *CASES["dp_central"])
    rows = [json.loads(line) for line in lines(path)]
    epsilon = {r["adversary"]: r for r in rows if r["metric"] == "epsilon"}
    assert set(epsilon) == {"model_recipient", "server_operator"}
    assert 7.9 < epsilon["model_recipient"]["value"] <= 8
    assert epsilon["server_operator"]["value"] is None
    assert epsilon["server_operator"]["status"] == "not_applicable"
    assert [s["epsilon"] for s in manifest(path)["privacy"]] == [epsilon["model_recipient"]["value"], None]
    assert manifest(path)["reproducible"]


def test_system_noise_is_not_reproducible_and_says_so(tmp_path):
    asked = ["defense=dp_central", "defense.privacy.noise_source=system", "federation.rounds=1"]
    one, two = (do(tmp_path / d, *asked)[1] for d in "ab")
    assert lines(one) != lines(two)
    assert not manifest(one)["reproducible"]
    assert not manifest(one)["privacy"][0]["simulated"]


def test_a_run_is_named_by_what_changes_its_numbers(tmp_path):
    name = lambda *o: compose([*SMALL, f"results_dir={tmp_path}", *o]).id  # noqa: E731
    base = name()
    assert base == name("federation.workers=2") == name("rerun=all") == name("name=x", f"results_dir={tmp_path}/y")
    assert base == name("federation.local.learning_rate=0.10")
    assert base == name("federation.participation=1")
    assert base != name("federation.rounds=21")
    assert base[:12] == name("seed=3")[:12]
    assert name("seed=3").endswith("-s3")


def test_the_global_generator_is_left_as_it_was(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    do(tmp_path, *CASES["leakage"], "poisoning=backdoor")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.timeout(300)
def test_kill_9_and_resume_from_the_command_line(tmp_path):
    command = [str(Path(sys.executable).with_name("privbench")), "run", *SMALL[:-1], *LEAKAGE, "federation.rounds=8"]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}

    def start(folder: str, workers: int) -> subprocess.Popen:
        asked = [*command, f"federation.workers={workers}", f"results_dir={tmp_path / folder}"]
        return subprocess.Popen(asked, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    process = start("b", 2)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        found = list((tmp_path / "b").glob("runs/*/metrics.jsonl"))
        if found and '"round": 2' in found[0].read_text():
            break
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()[0].decode()
    process.kill()
    process.communicate()
    again, undisturbed = start("b", 1), start("a", 2)
    for p in (again, undisturbed):
        output = p.communicate(timeout=200)[0].decode()
        assert p.returncode == 0, output
        assert ("resumed" in output) == (p is again), output
    (one,), (two,) = ((tmp_path / f).glob("runs/*") for f in "ab")
    assert one.name == two.name
    assert lines(one) == lines(two)
    assert len(lines(one)) > 50
