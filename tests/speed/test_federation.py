"""The contenders do the same work, and the table compares them."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from privbench.benchmarks.speed import federation, peers
from privbench.benchmarks.speed.work import Timing, Work, interleave, table

# Five rounds: after two, accuracy still varies by 0.06 with the order of batches, which differs between contenders.
TINY = Work(clients=8, cohort=8, rounds=5)
CHANCE = 0.1


@pytest.fixture(scope="module")
def reference() -> Timing:
    return federation.plain(TINY)


def similar(timing: Timing, reference: Timing) -> bool:
    """Learned as much as the plain loop did, but for the order of batches."""
    return timing.seconds > 0 and abs(timing.accuracy - reference.accuracy) < 0.05


def test_the_plain_loop_learns(reference: Timing) -> None:
    assert reference.accuracy > 0.8 > CHANCE


@pytest.mark.parametrize(
    "contender",
    [
        pytest.param(federation.indexed, marks=pytest.mark.slow),
        pytest.param(federation.ours(1), marks=pytest.mark.slow),
        federation.ours(2),
    ],
    ids=["indexed", "one worker", "two workers"],
)
def test_contenders_reach_the_accuracy_of_the_plain_loop(
    contender: Callable[[Work], Timing], reference: Timing
) -> None:
    assert similar(contender(TINY), reference)


@pytest.mark.slow
@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: peer.title.format(2))
def test_peers_reach_the_accuracy_of_the_plain_loop(peer: peers.Peer, reference: Timing) -> None:
    title = peer.title.format(2)
    contenders = peers.installed(2)
    if title not in contenders:
        pytest.skip(f"needs {' and '.join(peer.needs)}")
    assert similar(contenders[title](TINY), reference)


def test_a_peer_that_is_not_installed_takes_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    there = peers.Peer("there, {} threads", "peers_pfl", ("json",))
    absent = peers.Peer("absent", "peers_pfl", ("json", "no_such_module"))
    monkeypatch.setattr(peers, "PEERS", (there, absent))
    assert list(peers.installed(3)) == ["there, 3 threads"]


def test_a_peer_that_fails_says_why() -> None:
    contender = peers.contender(peers.Peer("broken", "no_such_adapter", ()), workers=1)
    with pytest.raises(RuntimeError, match=r"broken failed:(.|\n)*no_such_adapter"):
        contender(TINY)


def test_importing_peers_imports_none_of_them() -> None:
    code = (
        "import sys; from privbench.benchmarks.speed import peers; peers.installed(2);"
        "sys.exit(', '.join({'blazefl', 'flwr', 'pfl', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""


def test_contenders_take_turns() -> None:
    calls: list[str] = []

    def contender(name: str) -> Callable[[Work], Timing]:
        return lambda work: calls.append(name) or Timing(1.0, 0.5)

    timings = interleave({"a": contender("a"), "b": contender("b")}, TINY, repeats=2)
    assert calls == ["a", "b", "a", "b"]
    assert {name: len(runs) for name, runs in timings.items()} == {"a": 2, "b": 2}


def test_the_table_holds_medians_of_paired_ratios() -> None:
    # Pairs 2/1, 4/1, 9/3: their median is 3; the ratio of medians would be 4.
    timings = {
        "plain": [Timing(2.0, 0.91), Timing(4.0, 0.92), Timing(9.0, 0.93)],
        "fast": [Timing(1.0, 0.90), Timing(1.0, 0.94), Timing(3.0, 0.92)],
    }
    lines = table(timings, Work(rounds=2), "plain").splitlines()
    assert lines[0] == "100 clients, 10 a round, 2 rounds, 3 repeats"
    assert lines[2].split() == ["plain", "2.0000", "1.0000", "4.5000", "1.00x", "0.9200"]
    assert lines[3].split() == ["fast", "0.5000", "0.5000", "1.5000", "3.00x", "0.9200"]


def test_the_command_explains_itself() -> None:
    command = [sys.executable, "-m", "privbench.benchmarks.speed.federation", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"})
    assert done.returncode == 0, done.stderr
    assert "--repeats" in done.stdout
    assert "--workers" in done.stdout
