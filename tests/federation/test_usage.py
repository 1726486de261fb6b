"""What processes take is measured where it is spent: in this process, in workers, and in what they start."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from privbench.benchmarks.federation.usage import Meter, Stopwatch, Usage, cpu_seconds, peak_memory, processes
from privbench.defenses import Defense
from privbench.defenses.channel import Message, SecAgg

MIB = 2**20


def spin(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_cpu_seconds_of_another_process_are_those_that_it_counts():
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(time.process_time(), flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as child:
        assert child.stdout is not None
        own = float(child.stdout.readline())
        assert child.pid in processes()
        assert own <= cpu_seconds(child.pid) <= own + 10
        child.communicate("\n")
    assert cpu_seconds(child.pid) == 0


def test_a_stopwatch_sees_memory_that_is_gone_again():
    watch = Stopwatch()
    block = bytearray(os.urandom(1) * (64 * MIB))
    del block
    first = watch.read()
    assert first.memory is not None
    second = Stopwatch()
    assert second.before == first.memory
    found = second.read().memory
    assert found is not None
    assert first.memory - found > 50 * MIB


def test_a_stopwatch_counts_work_and_not_waiting():
    watch = Stopwatch()
    spin(0.05)
    time.sleep(0.05)
    found = watch.read()
    assert found.cpu_seconds >= 0.05
    assert found.seconds >= found.cpu_seconds + 0.03


def test_turns_of_a_client_add_up_but_for_memory():
    first, second = Usage(1.0, 0.5, 100, 10, 20), Usage(2.0, 1.5, 70, 1, 2)
    assert first.then(second) == Usage(3.0, 2.0, 100, 11, 22)
    assert Usage().then(Usage(memory=3)).memory == 3


def test_a_meter_knows_who_sent_what_and_whose_peak_it_was():
    meter = Meter()
    own = os.getpid()
    sent = [
        Message(1, None, 10, received=5, usage=Usage(0.5, 750.0, 7), process=(own, 10**15)),
        Message(0, None, 1, usage=Usage(0.5, 1000.0, 7), process=(10**9, 10**16)),
        Message(1, None, 2, received=3, usage=Usage(0.5, 750.0, 9), process=(own, 3)),
    ]
    assert list(meter.waiting(sent)) == sent
    found = meter.read()
    assert found.clients == {0: Usage(0.5, 1000.0, 7, 1, 0), 1: Usage(1.0, 1500.0, 9, 12, 8)}
    assert list(found.clients) == [0, 1]
    assert found.memory is not None
    assert 10**15 <= found.memory < 10**15 + 10**12
    assert found.cpu_seconds < 500, "what this process really took, and nothing of another rank's"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_round_counts_its_workers_and_every_byte(federate: Callable[..., Any], workers: int):
    done = federate(workers=workers, clients=3)
    for finished in done.rounds:
        usage = finished.usage
        assert list(usage.clients) == [0, 1, 2]
        size = done.federation.layout.size * 4
        assert {(u.sent, u.received) for u in usage.clients.values()} == {(size, size)}
        spent = sum(u.cpu_seconds for u in usage.clients.values())
        assert 0 < spent <= usage.cpu_seconds
        assert usage.memory is not None
        assert all(u.memory is not None and u.memory <= usage.memory for u in usage.clients.values())
        assert usage.seconds["round"] == pytest.approx(usage.seconds["clients"] + usage.seconds["server"])
    one = peak_memory(os.getpid()) or 0
    assert workers == 1 or done.rounds[-1].usage.memory > 1.2 * one


def test_secure_aggregation_counts_all_its_phases(federate: Callable[..., Any]):
    done = federate(clients=4, rounds=1, defense=Defense(channel=SecAgg()))
    usage, size = done.rounds[0].usage, done.federation.layout.size * 4
    network = done.rounds[0].views["network"].rounds[0]
    assert {c: u.sent for c, u in usage.clients.items()} == network.sizes
    # Keys of all, a sealed share of each other, the model, and a bit each for who is left.
    assert {u.received for u in usage.clients.values()} == {4 * 64 + 3 * 80 + size + 1}
    assert torch.isfinite(done.model).all()
