"""The engine of ranks, each in a process of its own on loopback: order, equality, errors, and ranks that go away."""

import multiprocessing
import os
import pickle
import signal
import socket
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.distributed import AHEAD, RankDiffers, Ranks, serve
from privbench.benchmarks.federation.engine import ClientFailed, Origin, WorkerStuck
from privbench.benchmarks.federation.group import Group
from privbench.benchmarks.federation.launch import Launch, launched, rank
from privbench.benchmarks.federation.meeting import RankLost
from privbench.benchmarks.federation.processes import Processes

from .conftest import fail_at_three, refuse

WORLD = 3
TIMEOUT = 2.0
"""Of tests of silence; others leave a busy machine more."""


def square(context, item):
    return context.base + item * item


def where(context, item):
    time.sleep(0.002)
    return os.getpid(), torch.get_num_threads(), float(context.received.sum())


def leave_in_other_ranks(context, item):
    if os.getpid() != context.first:
        os.kill(os.getpid(), context.signal)
    return item


def pause_elsewhere(context, item):
    time.sleep(0 if os.getpid() == context.first else 30)
    return item


def large(context, item):
    return item + 1


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def context(**more: Any) -> SimpleNamespace:
    return SimpleNamespace(base=10, received=torch.zeros(3), **more)


@pytest.fixture
def ranks(tmp_path: Path):
    """``ranks(use)``: what ``use(engine, group)`` returns in rank 0 of three, or raises."""
    fork = multiprocessing.get_context("fork")
    started: list[Any] = []

    def run(
        use: Callable[[Ranks, Group], Any],
        chunk: int = 1,
        facts: Callable[[int], dict[str, Any]] = lambda rank: {"run": "same"},
        world: int = WORLD,
        signal: int = signal.SIGKILL,
        timeout: float = 10 * TIMEOUT,
    ) -> Any:
        port, answer = free_port(), tmp_path / "answer"

        def one(rank: int) -> None:
            group = Group(Launch(rank, world, "127.0.0.1", port), timeout, 20)
            if rank:
                serve(group, lambda origin: (context(**origin.config), facts(rank)))
            try:
                origin = Origin({"first": os.getpid(), "signal": signal}, None, facts(0))
                found = (True, use(Ranks(context(**origin.config), group, chunk, origin), group))
            except Exception as error:
                found = (False, error)
            answer.write_bytes(pickle.dumps(found))
            group.close()
            os._exit(0)

        for number in range(world):
            process = fork.Process(target=one, args=(number,))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", category=DeprecationWarning)
                process.start()
            started.append(process)
        started[-world].join(30)
        assert answer.exists(), "rank 0 gave no answer"
        ok, value = pickle.loads(answer.read_bytes())
        if not ok:
            raise value
        return value

    yield run
    for process in started:
        process.kill()
        process.join()


@pytest.mark.parametrize("chunk", [1, 3])
def test_results_are_in_order_from_all_ranks(ranks, chunk):
    def use(engine, group):
        squares = [list(engine.map(square, range(n))) for n in (0, 1, 2, 25)]
        engine.share("received", torch.tensor([1.0, 2.0, 4.0]))
        return squares, list(engine.map(where, range(30)))

    squares, seen = ranks(use, chunk)
    assert squares == [[10 + i * i for i in range(n)] for n in (0, 1, 2, 25)]
    assert len({pid for pid, *_ in seen}) == WORLD, "all ranks, the first included, take part"
    assert {(threads, total) for _, threads, total in seen} == {(1, 7.0)}


def test_items_are_taken_within_a_window(ranks):
    def use(engine, group):
        taken, most = 0, 0

        def source():
            nonlocal taken
            for i in range(200):
                taken += 1
                yield i

        for done, _ in enumerate(engine.map(square, source()), start=1):
            most = max(most, taken - done)
        return most

    assert ranks(use) <= 2 * AHEAD * WORLD


def test_an_error_names_its_rank_and_its_cause_and_leaves_the_engine_usable(ranks):
    def use(engine, group):
        messages = []
        for function in (fail_at_three, refuse):
            with pytest.raises((ClientFailed, ConfigError)) as caught:
                list(engine.map(function, range(9)))
            messages.append((type(caught.value).__name__, str(caught.value), getattr(caught.value, "__notes__", [])))
        return messages, list(engine.map(square, range(9)))

    (failed, refused), after = ranks(use)
    assert failed[0] == "ClientFailed"
    last = failed[1].splitlines()[-1]
    assert last.startswith("rank ")
    assert last.endswith(": ZeroDivisionError: item three")
    assert "fail_at_three" in failed[1], "the traceback is there"
    assert refused[:2] == ("ConfigError", "alpha=0: more than 0")
    assert refused[2][0].startswith("in rank 0 of 3 (")
    assert after == [10 + i * i for i in range(9)]


def test_an_abandoned_map_leaves_nothing_to_the_next(ranks):
    def use(engine, group):
        first = engine.map(where, range(50))
        next(first)
        first.close()
        return list(engine.map(square, range(9)))

    assert ranks(use) == [10 + i * i for i in range(9)]


def test_a_run_that_ends_in_a_map_leaves_nothing_to_the_next_run(ranks):
    def use(engine, group):
        for _ in range(3):
            next(engine.map(where, range(50)))
            engine.close()
            engine = Ranks(engine._context, group, 1, Origin({"first": 0, "signal": 0}, None, {"run": "same"}))
        return list(engine.map(square, range(9)))

    assert ranks(use) == [10 + i * i for i in range(9)]


def test_a_start_that_fails_in_one_rank_leaves_nothing_to_the_next_run(ranks):
    """The other rank's answer to it comes when rank 0 has given it up, and is taken for none of a later start."""
    started = 0

    def facts(rank: int) -> dict[str, Any]:
        nonlocal started
        started += 1
        if (rank, started) == (1, 2):
            raise FileNotFoundError("no data here")
        time.sleep(0.3 if (rank, started) == (2, 2) else 0)
        return {"run": started}

    def use(engine, group):
        def again(run):
            return Ranks(engine._context, group, 1, Origin({"first": 0, "signal": 0}, None, {"run": run}))

        with pytest.raises(ClientFailed, match=r"rank 1 of 3 .*FileNotFoundError: no data here"):
            again(2)
        return list(again(3).map(square, range(9)))

    assert ranks(use, facts=facts) == [10 + i * i for i in range(9)]


def test_large_items_and_answers_travel_in_pieces(ranks, monkeypatch):
    monkeypatch.setattr("privbench.benchmarks.federation.link.PIECE", 100_000)

    def use(engine, group):
        items = [torch.full((1_000_000,), i, dtype=torch.uint8) for i in range(8)]
        return [int(r[-1]) for r in engine.map(large, items)]

    assert ranks(use) == list(range(1, 9))


def test_a_killed_rank_is_named(ranks):
    with pytest.raises(RankLost, match=r"^rank [12] of 3 \(.*\) is gone: its process ended"):
        ranks(lambda engine, group: list(engine.map(leave_in_other_ranks, range(9))))


def test_a_rank_that_hangs_is_named_after_the_timeout(ranks):
    def use(engine, group):
        return list(engine.map(leave_in_other_ranks, range(9)))

    with pytest.raises(RankLost, match=r"^rank 1 of 2 \(.*\) is gone: no sign of life for 2 s"):
        ranks(use, world=2, signal=signal.SIGSTOP, timeout=TIMEOUT)


def test_busy_ranks_give_signs_of_life_but_no_answer(ranks):
    def use(engine, group):
        return list(engine.map(pause_elsewhere, range(9), patience=1.5 * TIMEOUT))

    with pytest.raises(WorkerStuck, match=r"no answer for 3 s \(federation.patience\) from rank 1 of 3 .*, rank 2"):
        ranks(use, timeout=TIMEOUT)


def test_ranks_of_other_data_or_versions_are_refused(ranks):
    with pytest.raises(RankDiffers, match=r"rank [12] of 3 \(.*\) has run other, rank 0 has same: all ranks need"):
        ranks(lambda engine, group: None, facts=lambda rank: {"run": "other" if rank else "same"})


@pytest.mark.parametrize(("rank", "world", "who"), [(0, 3, "ranks 1, 2 haven't"), (1, 2, "rank 0 hasn't")])
def test_who_never_comes_is_named(rank, world, who):
    with pytest.raises(RankLost, match=rf"{who} come .*in 0.5 s \(federation.engine.meeting\)"):
        Group(Launch(rank, world, "127.0.0.1", free_port()), TIMEOUT, 0.5)


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}
SRUN = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "MASTER_ADDR": "b", "MASTER_PORT": "29501"}


def test_the_environment_says_which_rank_this_is():
    assert launched(TORCHRUN) == Launch(1, 4, "a", 29500)
    assert launched(SRUN) == Launch(3, 8, "b", 29501)
    assert launched({**SRUN, **TORCHRUN}) == Launch(1, 4, "a", 29500), "torchrun, started by srun"
    assert [rank(e) for e in ({}, TORCHRUN, SRUN)] == [0, 1, 3]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, r"started by torchrun, or by srun .*not set: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ({k: v for k, v in SRUN.items() if "MASTER" not in k}, r"not set: MASTER_ADDR, MASTER_PORT$"),
        ({**TORCHRUN, "RANK": "one"}, r"RANK=one: a whole number"),
        ({**TORCHRUN, "RANK": "4"}, r"RANK=4: below WORLD_SIZE=4"),
        ({**TORCHRUN, "MASTER_PORT": "70000"}, r"MASTER_PORT=70000: a port"),
    ],
)
def test_an_incomplete_environment_is_refused_by_name(environment, message):
    with pytest.raises(ConfigError, match=message):
        launched(environment)


def test_processes_are_refused_under_torchrun(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"federation.engine=processes: distributed under torchrun"):
        Processes().check(5, None, SimpleNamespace(apart=False))
