"""Workloads: each does what it says, and each of their YAMLs builds."""

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.overhead import record_command, recording
from privbench.benchmarks.overhead.workloads import native
from privbench.benchmarks.overhead.workloads.first_touch import FirstTouch
from privbench.benchmarks.overhead.workloads.matrix_product import MatrixProduct
from privbench.benchmarks.overhead.workloads.memory_bandwidth import MemoryBandwidth
from privbench.benchmarks.overhead.workloads.pages import words
from privbench.benchmarks.overhead.workloads.pointer_chase import LINE, PointerChase, cycle
from privbench.benchmarks.overhead.workloads.system_calls import SystemCalls
from privbench.benchmarks.overhead.workloads.workload import Bench, Unavailable

CONF = Path(record_command.__file__).parents[2] / "conf" / "overhead"
ROUNDS = ("federated_round",)
"""Has no size but its number of defenses, each of which is composed."""

NAMES = sorted(path.stem for path in (CONF / "workload").glob("*.yaml"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, (0, 1), {1: 2**15, 2: 2**20, 3: 2**25})


def run(case):
    """One repeat; what it returned."""
    with case.open() as steps:
        steps.before()
        found = steps.run()
        steps.after()
    return found


@pytest.mark.parametrize("name", NAMES)
def test_each_yaml_builds_what_it_is_named_after(name):
    what = recording.checked(record_command.compose([f"workload={name}"]))
    assert [*what.workloads] == [name]
    settings = record_command.compose([f"workload={name}"])["workloads"][name]
    # It states every field at its default, so that the file is where sizes are looked up.
    assert set(settings) - {"_target_"} == set(vars(what.workloads[name]))


@pytest.mark.parametrize("name", ["default", "quick"])
def test_each_set_names_every_workload(name):
    what = recording.checked(record_command.compose([f"set={name}"]))
    assert sorted(what.workloads) == NAMES
    assert what.set == name


def test_the_quick_set_is_smaller_in_everything_that_has_a_size(bench):
    sizes = []
    for name in ("default", "quick"):
        what = recording.checked(record_command.compose([f"set={name}"]))
        sizes.append(
            {n: sum(c.amount * c.calls for c in w.cases(bench)) for n, w in what.workloads.items() if n not in ROUNDS}
            | {"repeats": what.repeats}
        )
    larger = {n for n in sizes[0] if sizes[1][n] > sizes[0][n]}
    assert not larger


@pytest.mark.parametrize(("loop", "expected"), [("copy", 1.0), ("scale", 3.0), ("add", 3.0), ("triad", 7.0)], ids=str)
def test_the_loops_of_stream_compute_and_count_what_stream_does(bench, loop, expected):
    case = next(c for c in MemoryBandwidth(megabytes=1, threads=1).cases(bench) if c.name == loop)
    out = run(case)
    assert isinstance(out, torch.Tensor)
    assert torch.equal(out, torch.full((2**20 // 8,), expected, dtype=torch.float64))
    assert case.amount == 2**20 * (2 if loop in ("copy", "scale") else 3)
    assert case.shared


def test_arrays_that_fit_into_a_cache_are_doubted(bench):
    assert "32 MiB" in next(iter(MemoryBandwidth(megabytes=127).cases(bench))).doubts[0]
    assert not next(iter(MemoryBandwidth(megabytes=128).cases(bench))).doubts


def test_the_native_loop_follows_pointers():
    try:
        with native.chaser() as chase:
            links = (ctypes.c_uint64 * 3)()
            base = ctypes.addressof(links)
            links[0], links[1], links[2] = base + 16, base, base + 8  # 0 -> 2 -> 1 -> 0
            assert [chase(base, n) - base for n in (1, 2, 3, 4, 300)] == [16, 8, 0, 16, 0]
    except Unavailable as error:
        pytest.skip(str(error))


def test_another_processor_has_no_native_loop(monkeypatch):
    monkeypatch.setattr(native.platform, "machine", lambda: "riscv64")
    with pytest.raises(Unavailable, match="riscv64"), native.chaser():
        pass


def test_the_cycle_comes_back_after_every_line_and_no_sooner():
    lines = 1024
    with words(lines * LINE) as memory:
        base = cycle(memory, seed=0)
        links = {base + LINE * i: int(memory[i * LINE // 8]) for i in range(lines)}
        at, seen = base, 0
        while not seen or at != base:
            at, seen = links[at], seen + 1
        assert seen == lines
        # Unlike a walk in order, it seldom goes to the next line.
        assert sum(b - a == LINE for a, b in links.items()) < lines / 50
        del memory


def test_a_chase_comes_to_where_its_cycle_says(bench):
    chase = PointerChase(kilobytes=(4,), steps=64, ablations=False)
    (case,) = chase.cases(bench)
    with case.open() as steps:
        assert steps.run() == steps.run()  # 64 lines: each repeat ends where it began


def test_a_chase_beyond_the_second_cache_is_shared_and_its_ablation_is_labelled(bench):
    cases = [*PointerChase(kilobytes=(16, 1024, 1025)).cases(bench)]
    assert [(c.name, c.shared, c.ablation) for c in cases] == [
        ("16KiB", False, None),
        ("1024KiB", False, None),
        ("1025KiB", True, None),
        ("1025KiB", True, "huge pages off"),
    ]


def test_each_repeat_of_first_touch_has_fresh_pages(bench):
    case = next(iter(FirstTouch(megabytes=4, ablations=False).cases(bench)))
    assert case.amount == 1024

    def faults() -> int:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    (without,) = [c for c in FirstTouch(megabytes=4).cases(bench) if c.ablation]
    with without.open() as steps:
        for _ in range(2):
            steps.before()
            before = faults()
            steps.run()
            assert faults() - before >= 4 * 2**20 // mmap.PAGESIZE
            steps.after()


def test_system_calls_are_as_many_as_stated(bench, monkeypatch):
    called: list[int] = []
    monkeypatch.setattr(os, "getppid", lambda: called.append(1))
    case = next(iter(SystemCalls(calls=17).cases(bench)))
    run(case)
    assert (len(called), case.calls) == (17, 17)


def test_a_matrix_product_counts_its_operations_and_labels_one_thread(bench):
    cases = [*MatrixProduct(size=8).cases(bench)]
    assert [(c.threads, c.ablation) for c in cases] == [(2, None), (1, "one thread")]
    assert cases[0].amount == 2 * 8**3
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(8, 8, generator=draw), torch.randn(8, 8, generator=draw)
    torch.testing.assert_close(run(cases[0]), torch.from_numpy(np.matmul(a.numpy(), b.numpy())))


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: MemoryBandwidth(megabytes=0), "megabytes"),
        (lambda: PointerChase(kilobytes=()), "kilobytes"),
        (lambda: PointerChase(kilobytes=(16, 16)), "kilobytes"),
        (lambda: PointerChase(steps=0), "steps"),
        (lambda: FirstTouch(megabytes=0), "megabytes"),
        (lambda: SystemCalls(calls=0), "calls"),
        (lambda: MatrixProduct(size=0), "size"),
        (lambda: MatrixProduct(threads=(2, 2)), "threads"),
    ],
)
def test_a_size_that_is_no_work_is_refused(make, field):
    with pytest.raises(ConfigError, match=field):
        make()
