"""The attested channel in a federation: nothing is lost, nothing leaks to the coordinator, and failures have names."""

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation import processes as engines
from privbench.benchmarks.federation.federation import Federation
from privbench.benchmarks.federation.server import ServerSGD, ServerState
from privbench.benchmarks.federation.settings import FederationSettings
from privbench.benchmarks.federation.view import ADVERSARIES
from privbench.benchmarks.tasks import Classification
from privbench.defenses import Defense
from privbench.defenses.accounting import ClientLevel
from privbench.defenses.aggregation import CoordinateMedian
from privbench.defenses.channel import Attested, RoundRefused

from .conftest import CENTRAL, finish


@pytest.mark.parametrize(
    ("stations", "settings", "workers"),
    [
        ({}, {"server": ServerSGD(momentum=0.9), "rounds": 3}, 2),
        ({"aggregation": CoordinateMedian()}, {"participation": 0.5, "dropout": 0.2}, 1),
        ({**CENTRAL, "privacy": ClientLevel(delta=1e-3, clip=0.3, epsilon=8.0)}, {"participation": 0.6}, 1),
    ],
    ids=["mean", "median", "central noise"],
)
def test_the_model_is_that_of_the_plain_channel_bit_for_bit(
    federate: Callable[..., Any], stations: dict[str, Any], settings: dict[str, Any], workers: int
):
    plain = federate(defense=Defense(**stations), **settings)
    sealed = federate(defense=Defense(channel=Attested(), **stations), workers=workers, **settings)
    assert all(torch.equal(a, b) for a, b in zip(plain.models, sealed.models, strict=True))
    assert not torch.equal(plain.models[0], plain.models[-1])


def test_what_is_left_for_each_adversary(attested: Any):
    made, session, folder = attested
    seen = finish(made, session, made.start())[0].views
    assert set(seen) == set(ADVERSARIES)
    operator = seen["server_operator"].rounds[-1]
    assert (operator.updates, operator.aggregate) == ({}, None)
    assert operator.participants == (0, 1, 2, 3)
    assert set(operator.sizes) == {0, 1, 2, 3}
    assert operator.sent is not None
    assert operator.released is not None
    recipient = seen["model_recipient"].rounds[-1]
    assert (recipient.participants, recipient.sizes) == (None, {})
    assert seen["network"].rounds[-1].sent is None
    assert session.assurance == "software"
    assert not (folder / "client_keys.bin").exists()
    assert not (folder / "refusals.jsonl").exists()


def test_a_client_that_is_sent_another_model_refuses(federation: Callable[..., Federation], tmp_path: Path):
    class Fork:
        """An operator that sends client 2 a model of its own making."""

        def craft(self, model: Tensor, client: int) -> Tensor:
            return model + 1 if client == 2 else model

    made = federation(rounds=1)
    made.distribution = Fork()
    session = made.session(made.start(), "a run", tmp_path)
    try:
        rounds = finish(made, session, made.start())
    finally:
        session.close()
    refusals = (tmp_path / "refusals.jsonl").read_text()
    assert '"client": 2, "by": "client", "name": "wrong_model"' in refusals
    assert '"client": 2, "by": "aggregator", "name": "silent"' in refusals
    assert rounds[0].views["server_operator"].rounds[-1].participants == (0, 1, 3)


def test_a_client_with_a_malformed_nonce_is_left_out_and_the_others_go_on(attested: Any, monkeypatch: Any):
    made, session, folder = attested
    relay = session.relay

    def short(phase: str, messages: Iterable[Any], state: ServerState) -> Any:
        given = list(messages)
        given[1].payload = given[1].payload[:-1]
        return relay(phase, given, state)

    monkeypatch.setattr(session, "relay", short)
    rounds = finish(made, session, made.start())
    assert [r.views["server_operator"].rounds[-1].participants for r in rounds] == [(0, 2, 3), (0, 2, 3)]
    assert '"client": 1, "by": "host", "name": "malformed_nonce"' in (folder / "refusals.jsonl").read_text()
    assert session.assurance == "software"


def test_a_least_cohort_stops_the_run_before_anything_is_released(
    federation: Callable[..., Federation], tmp_path: Path
):
    made = federation(Defense(channel=Attested(least_cohort=3)), participation=0.5)
    session = made.session(made.start(), "a run", tmp_path)
    try:
        with pytest.raises(RoundRefused, match="least_cohort: 2 clients in round 1, at least 3"):
            finish(made, session, made.start())
    finally:
        session.close()
    assert not list(tmp_path.glob("round-*"))


COORDINATOR = """
import sys
import torch
from privbench.benchmarks.federation import processes as engines
from privbench.benchmarks.federation.federation import Federation
from privbench.benchmarks.federation.settings import FederationSettings
from privbench.benchmarks.tasks import Classification
from privbench.benchmarks.tasks.models import MLP, make
from privbench.benchmarks.tasks.sources import Digits
from privbench.defenses import Defense
from privbench.defenses.channel import Attested, Plaintext
from pathlib import Path

channel = Plaintext() if sys.argv[1] == "plain" else Attested(attest_clients=sys.argv[1] == "tee_clients")
task = Classification(source=Digits(), records=200)
architecture = MLP(hidden=(16,))
model = make(architecture, task.spec, seed=0)
every = frozenset(range(4))
settings = FederationSettings(clients=4, rounds=2)
kept = {"watched": every, "keep": frozenset({1, 2})}
made = Federation(settings, task, model, Defense(channel=channel), architecture=architecture, **kept)
session = made.session(made.start(), "a run", Path(sys.argv[2]))
side = made.client_side(session)
engine = engines.start(side, 2, torch.device("cpu"), apart=True)
kept = []
for finished in made.run(made.start(), side, engine):
    kept.append(finished)
    print("round", flush=True)
    sys.stdin.readline()
engine.close()
session.close()
"""


def memory(pid: int) -> Iterator[bytes]:
    """Each writable region of a process."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as mem:
        for line in maps:
            span, mode = line.split()[:2]
            if not mode.startswith("rw"):
                continue
            start, end = (int(x, 16) for x in span.split("-"))
            try:
                mem.seek(start)
                yield mem.read(end - start)
            except (OSError, ValueError):
                continue  # device memory


def found(channel: str, folder: Path, marks: dict[int, list[bytes]]) -> dict[int, int]:
    """How many of each round's marks lie in the coordinator's memory after that round, or in what it wrote."""
    command = [sys.executable, "-c", COORDINATOR, channel, str(folder)]
    hits: dict[int, int] = {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number, own in marks.items():
            assert process.stdout.readline() == "round\n"
            regions = [*memory(process.pid), *(p.read_bytes() for p in folder.rglob("*") if p.is_file())]
            hits[number] = sum(any(mark in region for region in regions) for mark in own)
            process.stdin.write("\n")
            process.stdin.flush()
    assert process.returncode == 0
    return hits


def test_the_coordinating_process_cannot_read_an_update(task: Classification, mlp: torch.nn.Module, tmp_path: Path):
    """It looks for every client's update in that process's memory and in all that was written.

    This shows the flow of data, not isolation. The same search finds the updates of a plaintext channel.
    """
    made = Federation(
        FederationSettings(clients=4, rounds=2), task, mlp, watched=frozenset(range(4)), keep=frozenset({1, 2})
    )
    marks: dict[int, list[bytes]] = {}
    side = made.client_side()
    for finished in made.run(made.start(), side, engines.Serial(side)):
        updates = finished.views["server_operator"].rounds[-1].updates.values()
        marks[finished.round] = [u.vector[u.vector != 0][100:116].numpy().tobytes() for u in updates]
    del made
    assert all(len(own) == 4 for own in marks.values())
    assert found("plain", tmp_path / "plain", marks) == {1: 4, 2: 4}
    assert found("tee", tmp_path / "tee", marks) == {1: 0, 2: 0}
    assert found("tee_clients", tmp_path / "tee_clients", marks) == {1: 0, 2: 0}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"auditors": ("00",)}, "auditors"),
        ({"least_cohort": -1}, "least_cohort"),
        ({"greatest_age": 0.0}, "greatest_age"),
    ],
)
def test_bad_settings_are_refused_by_name(fields: dict[str, Any], field: str):
    with pytest.raises(ConfigError) as caught:
        Attested(**fields)
    assert caught.value.field == field


def test_a_least_cohort_must_not_show_what_sampling_hides():
    assert Attested().least(private=True, sampled=True) == 0
    assert Attested().least(private=True, sampled=False) == 1
    assert Attested(least_cohort=4).least(private=False, sampled=True) == 4
    with pytest.raises(ConfigError, match="least_cohort"):
        Attested(least_cohort=1).least(private=True, sampled=True)


def test_the_operators_epsilon_has_no_amplification(federation: Callable[..., Federation]):
    guarantee = ClientLevel(delta=1e-3, clip=0.3, epsilon=8.0)
    made = federation(Defense(channel=Attested(), privacy=guarantee, **CENTRAL), participation=0.5)
    plan = made.plan
    assert plan is not None
    recipient, operator, reader = plan.statements([plan.charge(n, ()) for n in (1, 2)])
    assert (reader["adversary"], reader["epsilon"]) == ("receipt_reader", operator["epsilon"])
    assert (operator["adversary"], operator["sampling_rate"]) == ("server_operator", 1.0)
    assert operator["epsilon"] > recipient["epsilon"] * 1.2
    plain = replace(made, defense=Defense(privacy=guarantee, **CENTRAL)).plan
    assert plain is not None
    assert plain.statements([])[1]["epsilon"] is None
