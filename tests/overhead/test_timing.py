"""Timing: what is counted, when it stops, where it runs."""

import os
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.overhead import load, timing
from privbench.benchmarks.overhead.timing import StopRule
from privbench.benchmarks.overhead.workloads.workload import Case, Steps, Unavailable

CPUS = tuple(sorted(os.sched_getaffinity(0)))


def case(run, before=lambda: None, after=lambda: None, **changes) -> Case:
    @contextmanager
    def opened():
        yield Steps(run, before, after)

    return Case("case", opened, **changes)


def take(made: Case, **rule) -> dict:
    return timing.take(made, StopRule(**{"repeats": 5, "seconds": 60.0, "warmup": 2, **rule}), CPUS, 0)


def test_each_repeat_is_kept_and_warm_up_is_not():
    calls: list[int] = []
    found = take(case(lambda: calls.append(1)))
    assert len(calls) == 7
    assert [len(found[name]) for name in ("wall_ns", "cpu_ns", "start_ns")] == [5, 5, 5]
    assert found["start_ns"] == sorted(found["start_ns"])
    assert found["stopped"] == "repeats"


def test_the_budget_stops_it_but_three_repeats_are_always_taken():
    found = take(case(lambda: time.sleep(0.01)), repeats=1000, seconds=0.001)
    assert len(found["wall_ns"]) == 3
    assert found["stopped"] == "seconds"
    assert min(found["wall_ns"]) >= 10_000_000  # sleep never returns early


def test_what_goes_before_and_after_is_not_timed():
    order: list[str] = []

    def slow(name: str):
        return lambda: (order.append(name), time.sleep(0.02))

    found = take(case(lambda: order.append("run"), slow("before"), slow("after")), repeats=3, warmup=0)
    assert order == ["before", "run", "after"] * 3
    # Each start is after the wait that precedes it, whatever the machine does meanwhile.
    starts = found["start_ns"]
    assert all(b - a >= 40_000_000 for a, b in pairwise(starts))
    assert sum(found["wall_ns"]) <= starts[-1] - starts[0] + found["wall_ns"][-1] - 2 * 40_000_000


def test_processor_time_of_a_sleep_is_less_than_its_wall_time():
    found = take(case(lambda: time.sleep(0.02)), repeats=3, warmup=0)
    assert sum(found["cpu_ns"]) < sum(found["wall_ns"]) / 2


def test_processor_time_of_a_child_that_was_waited_for_is_counted():
    import subprocess
    import sys

    spin = "import time\nwhile time.process_time() < 0.05: pass"
    found = take(case(lambda: subprocess.run([sys.executable, "-c", spin], check=True)), repeats=3, warmup=0)
    assert min(found["cpu_ns"]) >= 50_000_000


def test_a_case_that_cant_run_says_why():
    @contextmanager
    def opened():
        raise Unavailable("no such thing here")
        yield

    found = timing.take(Case("case", opened), StopRule(), CPUS, 0)
    assert (found["status"], found["reason"], found["wall_ns"]) == ("unavailable", "no such thing here", [])
    many = take(case(lambda: None, threads=len(CPUS) + 1))
    assert many["status"] == "unavailable"
    assert "processors" in many["reason"]


def test_it_is_pinned_and_then_no_longer():
    seen: list[set[int]] = []
    take(case(lambda: seen.append(os.sched_getaffinity(0))), warmup=0)
    assert seen == [{CPUS[-1]}] * 5
    assert tuple(sorted(os.sched_getaffinity(0))) == CPUS


def test_threads_are_the_case_s_and_then_as_before():
    seen: list[int] = []
    torch.set_num_threads(1)
    take(case(lambda: seen.append(torch.get_num_threads()), threads=len(CPUS)), warmup=0)
    assert seen == [len(CPUS)] * 5
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("change", [{"repeats": 2}, {"seconds": 0.0}, {"warmup": -1}])
def test_a_rule_that_measures_nothing_is_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        StopRule(**change)


def stat(root: Path, text: str) -> load.Reading:
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/stat").write_text(text)
    (root / "proc/loadavg").write_text("1.50 1.00 0.50 2/100 4242\n")
    return load.Reading(load.read(root).ticks, 0)


def test_the_load_of_others_leaves_out_this_process_idle_time_and_what_the_host_kept(tmp_path):
    tick = os.sysconf("SC_CLK_TCK")
    before = stat(tmp_path, "cpu  100 0 0 1000 0 0 0 0 0 0\n")
    # 200 ticks: 100 busy, of which 40 are ours, 80 idle or waiting, 20 stolen.
    after = stat(tmp_path, "cpu  190 5 5 1070 10 0 0 20 0 0\n")
    found = load.between(before, load.Reading(after.ticks, int(40e9 / tick)), tmp_path)
    assert found["others"] == pytest.approx(0.3)
    assert found["steal"] == pytest.approx(0.1)
    assert found["loadavg"] == [1.5, 1.0, 0.5]


def test_too_short_a_time_and_no_counters_say_nothing(tmp_path):
    before = stat(tmp_path, "cpu  100 0 0 1000 0 0 0 0 0 0\n")
    after = stat(tmp_path, "cpu  105 0 0 1005 0 0 0 0 0 0\n")
    assert load.between(before, after, tmp_path)["others"] is None
    assert load.between(load.Reading((), 0), load.Reading((), 1), tmp_path / "none")["loadavg"] is None
