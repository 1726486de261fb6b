"""Workloads of files, sockets, models and the attested protocol."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from privbench.attacks.leakage.attack import Reconstruction
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.overhead.workloads import confidential_update
from privbench.benchmarks.overhead.workloads.attestation import Attestation
from privbench.benchmarks.overhead.workloads.confidential_update import ConfidentialUpdate
from privbench.benchmarks.overhead.workloads.federated_round import EMULATED, FederatedRound
from privbench.benchmarks.overhead.workloads.file_io import BOUNCED, FileIO
from privbench.benchmarks.overhead.workloads.gradient_inversion import GradientInversion
from privbench.benchmarks.overhead.workloads.loopback import Loopback, _exchange, _open
from privbench.benchmarks.overhead.workloads.training_step import TrainingStep
from privbench.benchmarks.overhead.workloads.workload import Bench, Unavailable
from privbench.benchmarks.tasks.models import MLP
from privbench.defenses.tee.protocol import receipts


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, (0, 1), {1: 2**15, 2: 2**20})


def by_name(workload, bench) -> dict:
    return {(c.name, c.ablation): c for c in workload.cases(bench)}


def run(case) -> Any:
    with case.open() as steps:
        steps.before()
        found = steps.run()
        steps.after()
    return found


@pytest.mark.parametrize("ablation", [None, BOUNCED])
def test_a_file_is_written_whole_and_read_whole(bench, ablation):
    cases = by_name(FileIO(megabytes=1, kilobytes=64), bench)
    run(cases["write_fsync", ablation])
    path = bench.scratch / "file"
    raw = path.read_bytes()
    assert len(raw) == 2**20 == cases["write_fsync", ablation].amount
    assert raw[: 2**16] == raw[-(2**16) :] != bytes(2**16)
    assert run(cases["read", ablation]) == 2**20


def test_a_scratch_folder_in_memory_is_doubted(bench):
    for kind, doubted in (("tmpfs", True), ("ext4", False), (None, False)):
        inside = dataclasses.replace(bench, filesystem=kind)
        assert [bool(c.doubts) for c in FileIO(ablations=False).cases(inside)] == [doubted, doubted]


def test_a_block_has_to_divide_the_file():
    with pytest.raises(ConfigError, match="kilobytes"):
        FileIO(megabytes=1, kilobytes=1000)


@pytest.mark.parametrize("bounced", [False, True])
def test_the_other_process_sends_each_message_back(bounced):
    with _open(1000, 3, bounced) as steps:
        assert steps.run() == bytes(i % 251 for i in range(1000))


def test_a_peer_that_ends_is_no_answer():
    class Closed:
        def sendall(self, _):
            pass

        def recv_into(self, _):
            return 0

    with pytest.raises(ConnectionError):
        _exchange(Closed(), 8, 1, False)()  # pyright: ignore[reportArgumentType]


def test_transfers_count_both_ways_and_have_their_ablation(bench):
    cases = by_name(Loopback(kilobytes=64, transfers=4), bench)
    assert [*cases] == [("round_trip", None), ("transfer", None), ("transfer", BOUNCED)]
    assert (cases["transfer", None].amount, cases["transfer", None].calls) == (2 * 64 * 1024, 4)


def test_a_training_step_is_sgd_on_the_stated_batch(bench, monkeypatch):
    workload = TrainingStep(models={"mlp": MLP(hidden=(4,))}, batch_sizes=(2, 5), shape=(1, 4, 4), steps=3)
    cases = by_name(workload, bench)
    assert [(k, c.amount, c.calls, c.threads) for k, c in cases.items()] == [
        (("mlp-batch2", None), 2, 3, 2),
        (("mlp-batch5", None), 5, 3, 2),
        (("mlp-batch5", "one thread"), 5, 3, 1),
    ]
    stepped: list[int] = []
    real = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, *a: (stepped.append(1), real(self, *a))[1])
    run(cases["mlp-batch5", None])
    assert len(stepped) == 3


def test_without_a_graphics_processor_there_is_no_step_on_it(bench, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    case, *others = TrainingStep(models={"mlp": MLP(hidden=(4,))}, batch_sizes=(2,), device="cuda").cases(bench)
    assert not others  # one thread of the processor is no ablation of another device
    with pytest.raises(Unavailable, match="graphics"), case.open():
        pass


def test_an_inversion_takes_the_stated_iterations_and_comes_closer(bench):
    def objective(iterations: int) -> float:
        workload = GradientInversion(model=MLP(hidden=(8,)), shape=(1, 6, 6), iterations=iterations)
        (case,) = workload.cases(bench)
        assert case.calls == iterations
        found = run(case)
        assert isinstance(found, Reconstruction)
        return found.objective

    assert objective(60) < objective(1)


def test_rounds_follow_one_another_under_each_defense(bench):
    workload = FederatedRound(
        defenses=("none", "dp_central"),
        overrides=("task=digits", "task.records=100", "model=logistic"),
        clients=3,
    )
    for case in workload.cases(bench):
        assert not case.doubts
        with case.open() as steps:
            rounds: list[Any] = [steps.run() for _ in range(3)]
        assert [r.round for r in rounds] == [1, 2, 3]
        assert not any(r.last for r in rounds)


def test_an_emulated_tee_is_doubted_before_it_runs(bench):
    (case,) = FederatedRound(defenses=("tee",), overrides=("task=digits", "model=logistic")).cases(bench)
    assert case.doubts == (EMULATED,)
    hardware = FederatedRound(
        defenses=("tee",), overrides=("task=digits", "model=logistic", "defense.channel.platform=sev_snp")
    )
    assert not next(iter(hardware.cases(bench))).doubts


def test_a_defense_that_isn_t_there_is_refused_before_anything_is_timed(bench):
    with pytest.raises(ConfigError, match="defense=nope"):
        next(iter(FederatedRound(defenses=("none", "nope")).cases(bench)))


def test_without_a_guest_there_is_no_report_to_time_and_verification_still_is(bench):
    report, verify = Attestation().cases(bench)
    with pytest.raises(Unavailable, match="no report"), report.open():
        pass
    assert run(verify).accepted


def test_sealed_updates_open_to_what_they_were_and_receipts_verify(bench):
    cases = by_name(ConfidentialUpdate(parameters=(100,), cohort=3), bench)
    assert [name for name, _ in cases] == ["seal-100", "open-100", "receipt_sign-3", "receipt_verify-3"]
    opened = run(cases["open-100", None])
    assert torch.equal(opened.vector, torch.randn(100, generator=torch.Generator().manual_seed(0)))
    assert len(run(cases["seal-100", None])) > 400
    stated = run(cases["receipt_verify-3", None])
    assert (stated.accepted, len(stated.inputs)) == (3, 3)
    fields = {f.name for f in dataclasses.fields(receipts.Receipt)}
    assert set(vars(confidential_update._receipt_of(2))) == fields
