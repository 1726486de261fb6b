"""An attested run on disk: its receipts verify, its assurance is what the evidence shows, and it resumes."""

import json
import multiprocessing
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest

from privbench.benchmarks.progress import Progress
from privbench.benchmarks.results.load import Refused, load
from privbench.benchmarks.results.record import Record
from privbench.benchmarks.run import Outcome, run
from privbench.benchmarks.sweep import compose
from privbench.defenses.tee.command import attest
from privbench.defenses.tee.protocol.folder import Folder
from privbench.defenses.tee.protocol.receipts import read

SMALL = ["task=digits", "task.records=200", "model=mlp", "federation.clients=4", "federation.workers=1"]
TEE = ["defense=tee", "federation.rounds=3", "federation=fedavgm"]


def do(folder: Path, *overrides: str) -> tuple[Outcome, Path]:
    prepared = compose([*SMALL, *overrides, f"results_dir={folder}"])
    return run(prepared, {"defense": "tee"}, Progress("test")), prepared.path


def manifest(path: Path) -> dict[str, Any]:
    return json.loads((path / "manifest.json").read_text())


def numbers(path: Path) -> list[dict[str, Any]]:
    """Metrics other than times."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if not row["metric"].endswith(("_seconds", "memory_bytes"))]


def killed(folder: Path, at: int, when: str, *overrides: str) -> None:
    """Do a run in a process that dies by SIGKILL in round ``at``: ``in`` it, when the aggregator has released and
    nothing is stored, when that is ``released`` and stored, or ``before`` or ``after`` its checkpoint."""

    def child() -> None:
        checkpoint, release = Record.checkpoint, Folder.release

        def stored(self: Folder, round: int, answer: dict[str, Any], report: bytes) -> None:
            if round == at and when == "in":
                os.kill(os.getpid(), signal.SIGKILL)
            release(self, round, answer, report)
            if round == at and when == "released":
                os.kill(os.getpid(), signal.SIGKILL)

        def checked(self: Record, state: Any) -> None:
            if state.round == at and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            checkpoint(self, state)
            if state.round == at:
                os.kill(os.getpid(), signal.SIGKILL)

        Record.checkpoint, Folder.release = checked, stored
        do(folder, *overrides)

    process = multiprocessing.get_context("fork").Process(target=child)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run, for tests that only read it or work on a copy."""
    outcome, path = do(tmp_path_factory.mktemp("attested"), *TEE)
    assert (outcome.status, outcome.note) == ("complete", None)
    return path


def copied(finished: Path, folder: Path) -> Path:
    import shutil

    target = folder / "runs" / finished.name
    shutil.copytree(finished, target)
    return target


def test_the_record_says_what_stands_behind_it(finished: Path):
    said = manifest(finished)
    assert (said["assurance"], said["isolation"]) == ("software", "same_host")
    assert "software TEE" in load(finished).arms()[0].label
    names = {row["metric"] for row in numbers(finished)} | {"channel_checking_seconds"}
    assert {"channel_evidence_bytes", "channel_receipt_bytes", "update_bytes"} <= names


def test_its_receipts_verify_from_the_command_line(finished: Path, capsys: pytest.CaptureFixture[str]):
    assert attest(["receipt", "verify", str(finished)]) == 0
    out = capsys.readouterr().out
    assert "accepted: assurance software" in out
    assert "cannot show" in out


def test_a_software_run_can_not_enter_a_hardware_table(finished: Path, tmp_path: Path):
    path = copied(finished, tmp_path)
    (path / "manifest.json").write_text(json.dumps({**manifest(path), "assurance": "hardware"}))
    with pytest.raises(Refused, match="a software TEE passed off as hardware"):
        load(tmp_path).arms()


@pytest.mark.parametrize("name", ["round-0002.receipt.json", "round-0001.report.bin", "manifest.json"])
def test_altered_evidence_leaves_nothing_assured(finished: Path, tmp_path: Path, name: str):
    path = copied(finished, tmp_path)
    file = path / "artifacts" / "attestation" / name
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(bytes(raw))
    with pytest.raises(Refused, match="assurance software is claimed, its evidence shows none"):
        load(tmp_path).arms()
    (path / "manifest.json").write_text(json.dumps({**manifest(path), "assurance": "none"}))
    with pytest.raises(Refused, match="there is no evidence that holds"):
        load(tmp_path).arms()


def comparable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what evidence, proofs and sealed models weigh."""
    return [row for row in rows if not row["metric"].endswith("_bytes")]


SEALED, BOTH = "defense.channel.downlink=sealed", "defense.channel.attest_clients=true"


@pytest.mark.parametrize(
    ("at", "when", "more"),
    [
        (2, "after", ()),
        (2, "before", ()),
        (2, "before", (SEALED,)),
        (2, "after", (BOTH, SEALED)),
        (1, "before", (SEALED,)),
        (1, "in", (SEALED,)),
    ],
    ids=["after", "before", "sealed", "sealed to attested clients", "sealed, round 1", "sealed, in round 1"],
)
def test_a_killed_run_goes_on_under_new_keys(finished: Path, tmp_path: Path, at: int, when: str, more: tuple[str, ...]):
    killed(tmp_path, at, when, *TEE, *more)
    outcome, path = do(tmp_path, *TEE, *more)
    how = "ran" if at == 1 else "resumed"
    assert (outcome.status, outcome.how, outcome.note) == ("complete", how, None)
    assert comparable(numbers(path)) == comparable(numbers(finished))
    # Of a round that had been released before, each client's bytes aren't known anew.
    assert more or when == "before" or numbers(path) == numbers(finished)
    assert manifest(path)["assurance"] == "software"
    folder = path / "artifacts" / "attestation"
    assert len(list((folder / "roots").iterdir())) == 2
    assert sorted(p.name for p in folder.glob("round-*.receipt.json")) == [
        f"round-000{n}.receipt.json" for n in (1, 2, 3)
    ]


def test_a_round_that_was_killed_after_its_release_is_charged_twice(tmp_path: Path):
    """What the aggregator released and nobody stored may have been read: the next attempt counts it."""
    private = ["defense=tee_dp", "federation.rounds=2", "defense.privacy.epsilon=8"]
    killed(tmp_path, 2, "in", *private)
    outcome, path = do(tmp_path, *private)
    assert (outcome.status, outcome.how, outcome.note) == ("complete", "resumed", None)
    receipt, _ = read((path / "artifacts" / "attestation" / "round-0002.receipt.json").read_bytes())
    assert receipt.attempt == 2
    stated = [s["epsilon"] for s in manifest(path)["privacy"] if s["adversary"] == "server_operator"]
    assert stated[0] > 8.5
    assert manifest(path)["assurance"] == "software"


def test_no_run_that_is_over_leaves_its_clients_keys(tmp_path: Path):
    small = ["defense=tee", "federation.rounds=1"]
    killed(tmp_path / "killed", 1, "released", *small)
    (keys,) = (tmp_path / "killed").rglob("client_keys.bin")
    outcome, _ = do(tmp_path / "killed", *small)
    assert outcome.status == "complete"
    assert not keys.exists()
    outcome, path = do(tmp_path / "diverged", *small, "federation.local.learning_rate=1e30")
    assert outcome.status == "diverged"
    assert (path / "artifacts" / "attestation" / "manifest.json").exists()
    assert not list(path.rglob("client_keys.bin"))


def test_a_refusal_to_go_on_is_the_records_reason(tmp_path: Path):
    outcome, path = do(tmp_path, *TEE, "defense.channel.least_cohort=5")
    assert outcome.status == "failed"
    assert "least_cohort: 4 clients in round 1, at least 5: nothing is released" in manifest(path)["error"]
    assert manifest(path)["assurance"] == "none"


def test_a_run_repeated_on_request_leaves_nothing_of_the_first(tmp_path: Path):
    _, path = do(tmp_path, *TEE)
    first = (path / "artifacts" / "attestation" / "manifest.json").read_bytes()
    outcome, path = do(tmp_path, *TEE, "rerun=all")
    assert outcome.how == "ran"
    assert (path / "artifacts" / "attestation" / "manifest.json").read_bytes() != first
    assert len(list((path / "artifacts" / "attestation" / "roots").iterdir())) == 1
