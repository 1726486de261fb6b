import gc
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.engine import ClientFailed, WorkerDied, WorkerStuck
from privbench.benchmarks.federation.processes import Pool, Serial, cores, start

from .conftest import fail_at_three, refuse


def square(context, item):
    return context + item * item


def slow_first(context, item):
    time.sleep(0.05 if item % 4 == 0 else 0)
    return item


def die_at_three(context, item):
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def megabyte(context, item):
    return item + 1


def threads(context, item):
    return os.getpid(), torch.get_num_threads()


@pytest.fixture
def pool():
    made: list[Pool] = []

    def make(workers: int = 2, context=0) -> Pool:
        made.append(Pool(context, workers))
        return made[-1]

    yield make
    for p in made:
        p.close()


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("items", [0, 1, 2, 25])
def test_results_are_in_order(pool, workers, items):
    p = pool(workers, context=10)
    expected = [10 + i * i for i in range(items)]
    assert list(p.map(square, range(items))) == expected
    assert list(p.map(square, range(items))) == expected, "a pool serves again and again"
    assert list(Serial(10).map(square, range(items))) == expected


def test_order_holds_where_some_are_slow(pool):
    assert list(pool(3).map(slow_first, range(20))) == list(range(20))


def test_items_are_taken_within_a_window(pool):
    taken = 0

    def source():
        nonlocal taken
        for i in range(500):
            taken += 1
            yield i

    p = pool(2)
    window = 2 * Pool.AHEAD * 2
    for done, _ in enumerate(p.map(square, source()), start=1):
        assert taken <= done + window
    assert done == taken == 500


def test_a_slow_item_holds_the_window(pool):
    taken = 0

    def source():
        nonlocal taken
        for i in range(100):
            taken += 1
            yield 0.3 if i == 0 else 0.0

    results = pool(2).map(pause, source())
    next(results)
    assert taken <= 2 * Pool.AHEAD * 2 + 1


def pause(context, seconds):
    time.sleep(seconds)
    return seconds


def test_workers_run_one_thread_in_processes_of_their_own(pool):
    seen = set(pool(2).map(threads, range(8)))
    assert {t for _, t in seen} == {1}
    assert os.getpid() not in {p for p, _ in seen}
    assert len(seen) == 2


def test_an_exception_surfaces_with_its_traceback(pool):
    results = pool(2).map(fail_at_three, range(10))
    with pytest.raises(ClientFailed, match=r"fail_at_three[\s\S]*ZeroDivisionError: item three"):
        list(results)


def test_the_suites_own_errors_stay_what_they_are(pool):
    with pytest.raises(ConfigError, match=r"alpha=[012]: more than 0"):
        list(pool(2).map(refuse, range(3)))


def test_a_pool_works_on_after_a_failure(pool):
    p = pool(2)
    for _ in range(3):
        with pytest.raises(ClientFailed):
            list(p.map(fail_at_three, range(10)))
        assert list(p.map(square, range(9))) == [i * i for i in range(9)]


def test_an_abandoned_map_leaves_nothing_to_the_next(pool):
    p = pool(2)
    first = p.map(slow_first, range(50))
    assert next(first) == 0
    first.close()
    assert list(p.map(square, range(9))) == [i * i for i in range(9)]


@pytest.mark.timeout(60)
def test_a_killed_worker_is_noticed(pool):
    with pytest.raises(WorkerDied, match="exit code -9"):
        list(pool(2).map(die_at_three, range(30)))


@pytest.mark.timeout(60)
def test_a_worker_killed_while_idle_is_noticed(pool):
    p = pool(2)
    victim = next(iter(p.map(threads, [0])))[0]
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(WorkerDied):
        list(p.map(square, range(30)))


@pytest.mark.timeout(60)
def test_large_items_and_large_answers_do_not_block_each_other(pool):
    # Larger than a pipe holds: a coordinator that sends to a worker that sends would wait for ever.
    items = [np.full(1_000_000, i, dtype=np.uint8) for i in range(12)]
    results = list(pool(2).map(megabyte, iter(items)))
    assert [int(r[0]) for r in results] == [i + 1 for i in range(12)]


@pytest.mark.timeout(60)
def test_a_worker_that_never_answers_is_given_up(pool):
    p = pool(2)
    results = p.map(pause, [0.0, 0.0, 300.0, 0.0], patience=0.5)
    assert [next(results), next(results)] == [0.0, 0.0], "what came in before is not lost"
    with pytest.raises(WorkerStuck, match=r"no answer for 0.5 s \(federation.patience\) from worker \d+"):
        list(results)
    started = time.monotonic()
    p.close()
    assert time.monotonic() - started < 10


def test_closing_twice_leaves_no_process():
    p = Pool(0, 3)
    children = {c.pid for c in multiprocessing.active_children()}
    assert len(children) >= 3
    list(p.map(square, range(4)))
    p.close()
    p.close()
    left = {c.pid for c in multiprocessing.active_children()} & children
    assert not left
    states = [Path(f"/proc/{c}/stat") for c in children]
    assert not any(s.exists() for s in states), "a zombie is left"
    with pytest.raises(RuntimeError, match="closed"):
        list(p.map(square, range(4)))


@pytest.mark.timeout(60)
def test_closing_does_not_wait_for_a_busy_worker():
    p = Pool(0, 1)
    results = p.map(pause, iter([0.0, 60.0]))
    next(results)
    before = time.perf_counter()
    p.close()
    assert time.perf_counter() - before < 20


def test_start_forks_for_several_workers_on_a_cpu_only():
    assert isinstance(start(0, 1, torch.device("cpu")), Serial)
    assert isinstance(start(0, 4, torch.device("cuda")), Serial)
    engine = start(0, 2, torch.device("cpu"))
    assert isinstance(engine, Pool)
    engine.close()
    assert cores() >= 1


@pytest.mark.parametrize(("asked", "found"), [("1", 1), ("4096", None), ("0", None), ("all", None)])
def test_a_slurm_task_uses_the_cores_that_it_asked_for(monkeypatch, asked, found):
    every = cores()
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", asked)
    assert cores() == (found or every)


@pytest.mark.timeout(60)
def test_workers_end_with_a_killed_coordinator(tmp_path):
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()

    def coordinate():
        p = Pool(0, 2)
        there.send([process.pid for process in p._processes])
        os.kill(os.getpid(), signal.SIGKILL)

    process = fork.Process(target=coordinate)
    process.start()
    workers = here.recv()
    process.join()
    deadline = time.monotonic() + 20
    while any(_running(w) for w in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_running(w) for w in workers)
    here.close()
    there.close()
    gc.collect()


def _running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # an orphan that ended waits for whatever adopted it
