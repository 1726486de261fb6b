"""The attested channel in a federation: nothing is lost, nothing leaks to the coordinator, and failures have names."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation import engine as engines
from privbench.benchmarks.federation.federation import Federation
from privbench.benchmarks.federation.server import ServerSGD, ServerState
from privbench.benchmarks.federation.settings import FederationSettings
from privbench.benchmarks.federation.view import ADVERSARIES
from privbench.benchmarks.tasks import Classification
from privbench.defenses import Defense
from privbench.defenses.accounting import ClientLevel
from privbench.defenses.aggregation import ClippedMean, CoordinateMedian
from privbench.defenses.channel import Attested, ChannelLost, Session
from privbench.defenses.release import CentralGaussian
from privbench.defenses.tee.platforms import Unavailable
from privbench.defenses.tee.platforms.host import hurry
from privbench.defenses.tee.protocol import folder as kept
from privbench.defenses.tee.protocol.receipts import read
from privbench.defenses.tee.protocol.refusals import RoundRefused
from privbench.defenses.tee.protocol.session import AttestedSession

TEE = Defense(channel=Attested())
CENTRAL = {"aggregation": ClippedMean(), "release": CentralGaussian()}


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


@pytest.fixture
def federation(task: Classification, mlp: torch.nn.Module) -> Callable[..., Federation]:
    def make(defense: Defense = TEE, **settings: Any) -> Federation:
        return Federation(FederationSettings(**{"clients": 4, "rounds": 2, **settings}), task, mlp, defense)

    return make


def finish(made: Federation, session: Session, state: ServerState) -> list[Any]:
    side = made.client_side(session)
    engine = engines.start(side, 1, torch.device("cpu"), apart=True)
    try:
        return list(made.run(state, side, engine))
    finally:
        engine.close()


@pytest.fixture
def attested(federation: Callable[..., Federation], tmp_path: Path) -> Iterator[Any]:
    """A federation, its session and its folder."""
    made = federation()
    session = made.session(made.start(), "a run", tmp_path / "attestation")
    assert isinstance(session, AttestedSession)
    yield made, session, tmp_path / "attestation"
    session.close()


def plain_model(federation: Callable[..., Federation], **settings: Any) -> Tensor:
    made = federation(Defense(), **settings)
    side = made.client_side()
    return list(made.run(made.start(), side, engines.Serial(side)))[-1].state.model


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


def kill(session: AttestedSession) -> None:
    os.kill(session._run._guest.pid, signal.SIGKILL)


def once(session: AttestedSession, monkeypatch: pytest.MonkeyPatch, at: int) -> list[int]:
    """Kill the aggregator when its host has handed over half of round ``at``'s messages, the first time."""
    killed: list[int] = []
    send = session._run._send
    handed: list[int] = []

    def counting(raw: bytes) -> None:
        if session._run.opened == at and len(raw) > 1000:
            handed.append(1)
            if len(handed) == 3 and not killed:
                killed.append(at)
                kill(session)
        send(raw)

    monkeypatch.setattr(session._run, "_send", counting)
    return killed


@pytest.mark.parametrize("at", [1, 2])
def test_an_aggregator_that_dies_in_a_round_is_started_again(
    attested: Any, federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch, at: int
):
    made, session, folder = attested
    killed = once(session, monkeypatch, at)
    rounds = finish(made, session, made.start())
    assert killed == [at]
    assert torch.equal(rounds[-1].state.model, plain_model(federation))
    receipts = [read((folder / f"round-{n:04d}.receipt.json").read_bytes())[0] for n in (1, 2)]
    assert [r.attempt for r in receipts] == [2 if n == at else 1 for n in (1, 2)]
    assert [r.accepted for r in receipts] == [4, 4]
    keys = {r.evidence["signing_key"] for r in receipts}
    assert len(keys) == (1 if at == 1 else 2), "after a restart: new keys"
    assert session.assurance == "software"


def test_epsilon_counts_every_attempt(
    federation: Callable[..., Federation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    guarantee = ClientLevel(delta=1e-3, clip=0.3, epsilon=8.0)
    made = federation(Defense(channel=Attested(), privacy=guarantee, **CENTRAL))
    session = made.session(made.start(), "a run", tmp_path)
    assert isinstance(session, AttestedSession)
    try:
        once(session, monkeypatch, 2)
        last = finish(made, session, made.start())[-1]
        assert made.plan is not None
        receipt = read((tmp_path / "round-0002.receipt.json").read_bytes())[0]
        assert (receipt.attempt, len(last.state.ledger), last.released.attempts) == (2, 3, 2)
        assert receipt.statements == made.plan.statements(last.state.ledger)
        assert receipt.statements[0]["epsilon"] > 8.5
        assert session.assurance == "software", "the audit counts them too"
    finally:
        session.close()


def test_an_aggregator_that_dies_between_rounds_is_started_again(
    attested: Any, federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch
):
    made, session, folder = attested
    opened, killed = session._run.open, []

    def dying(round: int, attempt: int, joins: dict[int, bytes]) -> dict[str, Any]:
        if round == 2 and not killed:
            killed.append(round)
            kill(session)
        return opened(round, attempt, joins)

    monkeypatch.setattr(session._run, "open", dying)
    rounds = finish(made, session, made.start())
    assert killed == [2]
    assert torch.equal(rounds[-1].state.model, plain_model(federation))
    assert read((folder / "round-0002.receipt.json").read_bytes())[0].attempt == 2


def test_an_aggregator_that_keeps_dying_stops_the_run(attested: Any, monkeypatch: pytest.MonkeyPatch):
    made, session, _ = attested
    restart = session._run.restart

    def doomed() -> None:
        restart()
        kill(session)

    monkeypatch.setattr(session._run, "restart", doomed)
    kill(session)
    with pytest.raises(ChannelLost, match="the aggregator is gone"):
        finish(made, session, made.start())


@pytest.mark.parametrize("while_it", ["waits for an answer", "hands a message over"])
def test_an_aggregator_that_hangs_is_started_again(
    federation: Callable[..., Federation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, while_it: str
):
    """Stopped, not dead: its socket stays open, and takes no more than a buffer of what is written."""
    made = federation(Defense(channel=Attested(patience=3.0)))
    session = made.session(made.start(), "a run", tmp_path)
    assert isinstance(session, AttestedSession)
    send, stopped, begun = session._run._send, [], time.monotonic()

    def stopping(raw: bytes) -> None:
        if session._run.opened == 1 and not stopped:
            stopped.append(session._run._guest.pid)
            os.kill(stopped[0], signal.SIGSTOP)
            if while_it == "hands a message over":
                raw = bytes(8 << 20)
        send(raw)

    monkeypatch.setattr(session._run, "_send", stopping)
    try:
        rounds = finish(made, session, made.start())
        assert session._run._guest.pid != stopped[0]
        assert time.monotonic() - begun < 60
        assert torch.equal(rounds[-1].state.model, plain_model(federation))
        assert read((tmp_path / "round-0001.receipt.json").read_bytes())[0].attempt == 2
    finally:
        session.close()


def test_an_aggregator_that_always_hangs_stops_the_run_by_name(attested: Any, monkeypatch: pytest.MonkeyPatch):
    made, session, _ = attested
    session._run.channel = replace(session._run.channel, patience=0.5)
    monkeypatch.setattr(session._run, "restart", lambda: None)
    hurry(session._run._guest.connection, 0.5)
    os.kill(session._run._guest.pid, signal.SIGSTOP)
    with pytest.raises(ChannelLost, match=r"the aggregator has not answered for 0\.5 s"):
        session.relay("join", [], made.start())
    with pytest.raises(ChannelLost, match="the aggregator is gone"):
        finish(made, session, made.start())


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

    def short(phase: str, messages: list[Any], state: ServerState) -> Any:
        messages[1].payload = messages[1].payload[:-1]
        return relay(phase, messages, state)

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


def test_a_full_disk_stops_the_run_and_the_round_is_done_once(
    attested: Any, federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch
):
    made, session, folder = attested
    write = kept.write
    with monkeypatch.context() as patched:

        def full(path: Path, raw: bytes, mode: int = 0o644) -> None:
            if path.name == "round-0002.receipt.json":
                raise OSError(errno.ENOSPC, "No space left on device")
            write(path, raw, mode)

        patched.setattr(kept, "write", full)
        side = made.client_side(session)
        engine = engines.start(side, 1, torch.device("cpu"), apart=True)
        state = made.start()
        try:
            stream = made.run(state, side, engine)
            state = next(stream).state
            with pytest.raises(OSError, match="No space left"):
                next(stream)
        finally:
            engine.close()
    session.close()
    again = made.session(state, "a run", folder)
    assert isinstance(again, AttestedSession)
    try:
        rounds = finish(made, again, state)
        assert [r.round for r in rounds] == [2]
        assert torch.equal(rounds[-1].state.model, plain_model(federation))
        assert again.assurance == "software"
    finally:
        again.close()


def test_a_release_that_was_stored_is_published_not_made_again(federation: Callable[..., Federation], tmp_path: Path):
    """Cut off between the aggregator's release and the checkpoint, with noise that nobody could draw twice."""
    noisy = ClientLevel(delta=1e-3, clip=0.3, epsilon=8.0, noise_source="system")
    made = federation(Defense(channel=Attested(), privacy=noisy, **CENTRAL))
    session = made.session(made.start(), "a run", tmp_path)
    first = finish(made, session, made.start())
    session.close()
    # The checkpoint is of round 1; round 2's release lies in the folder.
    state = made.start()
    state.round, state.model = 1, first[0].released.model
    state.ledger = first[0].state.ledger[:1]
    again = made.session(state, "a run", tmp_path)
    try:
        rounds = finish(made, again, state)
    finally:
        again.close()
    assert [r.round for r in rounds] == [2]
    assert torch.equal(rounds[0].released.model, first[1].released.model)
    assert len(rounds[0].state.ledger) == 2
    assert rounds[0].views["network"].rounds[-1].participants == (0, 1, 2, 3)


def test_a_state_that_no_receipt_names_is_not_taken_up(attested: Any, federation: Callable[..., Federation]):
    made, session, folder = attested
    state = finish(made, session, made.start())[-1].state
    session.close()
    release = kept.unpack((folder / "release.bin").read_bytes())
    forged = bytearray(release["state"])
    forged[-1] ^= 1
    (folder / "release.bin").write_bytes(kept.pack({**release, "state": bytes(forged)}))
    (folder / "client_keys.bin").write_bytes(os.urandom(4 * 32))
    with pytest.raises(Unavailable, match="wrong_state"):
        made.session(state, "a run", folder)


def test_a_record_that_is_behind_the_checkpoint_is_refused(federation: Callable[..., Federation], tmp_path: Path):
    state = federation().start()
    state.round = 5
    with pytest.raises(Unavailable, match="holds 0 rounds, the run's checkpoint 5"):
        federation().session(state, "a run", tmp_path)


def test_an_older_chain_is_put_aside_when_a_run_starts_from_nothing(attested: Any):
    made, session, folder = attested
    finish(made, session, made.start())
    session.close()
    again = made.session(made.start(), "a run", folder)
    again.close()
    assert (folder.with_name("attestation-abandoned-1") / "round-0002.receipt.json").exists()
    assert not (folder / "round-0001.receipt.json").exists()


COORDINATOR = """
import sys
import torch
from privbench.benchmarks.federation import engine as engines
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
    recipient, operator = plan.statements([plan.charge(n, ()) for n in (1, 2)])
    assert (operator["adversary"], operator["sampling_rate"]) == ("server_operator", 1.0)
    assert operator["epsilon"] > recipient["epsilon"] * 1.2
    plain = replace(made, defense=Defense(privacy=guarantee, **CENTRAL)).plan
    assert plain is not None
    assert plain.statements([])[1]["epsilon"] is None
