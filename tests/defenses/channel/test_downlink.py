"""The sealed downlink: models reach clients and who measures them, and nobody that carries or stores them."""

import copy
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from privbench.benchmarks.federation import processes as engines
from privbench.benchmarks.federation.federation import Federation
from privbench.benchmarks.federation.server import ServerAdam, ServerState
from privbench.benchmarks.federation.settings import FederationSettings
from privbench.benchmarks.tasks import Classification
from privbench.defenses import Defense
from privbench.defenses.channel import Attested, ChannelLost, RoundRefused
from privbench.defenses.tee.command import attest
from privbench.defenses.tee.platforms import Unavailable
from privbench.defenses.tee.protocol import sealing
from privbench.defenses.tee.protocol.audit import audit
from privbench.defenses.tee.protocol.receipts import read
from privbench.defenses.tee.protocol.session import AttestedSession
from privbench.defenses.tee.wire import pack, unpack

SEALED = Defense(channel=Attested(downlink="sealed"))
ROUNDS = 3


@pytest.fixture
def federation(task: Classification, mlp: torch.nn.Module) -> Callable[..., Federation]:
    def make(defense: Defense = SEALED, **settings: Any) -> Federation:
        # FedAdam: its moments are state that a restarted aggregator has to have again.
        given = {"clients": 4, "rounds": ROUNDS, "server": ServerAdam(learning_rate=0.05), **settings}
        return Federation(FederationSettings(**given), task, mlp, defense)

    return make


@pytest.fixture
def sealed(federation: Callable[..., Federation], tmp_path: Path) -> Iterator[Any]:
    """A federation, its session and its folder."""
    made = federation()
    session = made.session(made.start(), "a run", tmp_path / "attestation")
    assert isinstance(session, AttestedSession)
    yield made, session, tmp_path / "attestation"
    session.close()


def rounds(made: Federation, session: AttestedSession, state: ServerState) -> Iterator[Any]:
    side = made.client_side(session)
    engine = engines.start(side, 1, torch.device("cpu"), apart=True)
    try:
        yield from made.run(state, side, engine)
    finally:
        engine.close()


def plain_models(federation: Callable[..., Federation]) -> list[Tensor]:
    made = federation(Defense())
    side = made.client_side()
    return [r.released.model for r in made.run(made.start(), side, engines.Serial(side))]


def mark(model: Tensor) -> bytes:
    """Bytes that stand in the model and nowhere else."""
    return model[100:116].numpy().tobytes()


def test_the_models_are_those_of_the_plain_channel_and_no_file_or_message_shows_one(
    sealed: Any, federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch
):
    made, session, folder = sealed
    carried: list[bytes] = []
    send, receive = Connection.send_bytes, Connection.recv_bytes

    def sent(self: Connection, raw: bytes) -> None:
        if self is session._run._guest.connection:
            carried.append(raw)
        send(self, raw)

    def received(self: Connection) -> bytes:
        raw = receive(self)
        if self is session._run._guest.connection:
            carried.append(raw)
        return raw

    monkeypatch.setattr(Connection, "send_bytes", sent)
    monkeypatch.setattr(Connection, "recv_bytes", received)
    session.recover(made.start())  # another aggregator, all of whose messages are seen
    done = [r.released.model for r in rounds(made, session, made.start())]
    expected = plain_models(federation)
    assert all(torch.equal(a, b) for a, b in zip(done, expected, strict=True))
    files = [p.read_bytes() for p in folder.rglob("*") if p.is_file()]
    for model in expected:
        assert not any(mark(model) in raw for raw in (*files, *carried))
    # The search sees what was carried: the initial model, which everybody knows, and each round's report are there.
    assert any(mark(made.start().model) in raw for raw in carried)
    assert all(any(p.read_bytes() in raw for raw in carried) for p in folder.glob("round-*.report.bin"))
    plain = federation(Defense(channel=Attested()))
    other = plain.session(plain.start(), "a run", folder.parent / "plain")
    assert isinstance(other, AttestedSession)
    try:
        list(rounds(plain, other, plain.start()))
    finally:
        other.close()
    # Such a search does find what goes in the clear.
    assert mark(expected[-1]) in (folder.parent / "plain" / "release.bin").read_bytes()


def test_what_is_left_for_each_adversary(sealed: Any):
    made, session, folder = sealed
    seen = [r.views for r in rounds(made, session, made.start())]
    first, second = (s["server_operator"].rounds[-1] for s in seen[:2])
    assert first.sent is not None, "everybody knows the initial model"
    assert (first.released, second.sent, second.released) == (None, None, None)
    assert second.participants == (0, 1, 2, 3)
    participant = seen[1]["participant"].rounds[-1]
    assert participant.sent is not None
    assert participant.released is not None
    assert session.assurance == "software"
    # What a recipient needs for the last model stays, and is this user's alone.
    assert not (folder / "client_keys.bin").exists()
    assert (folder / "recipient_key.bin").stat().st_mode & 0o777 == 0o600
    assert [p.name for p in folder.glob("model-*.bin")] == [f"model-{ROUNDS:04d}.bin"]


def test_receipts_name_models_by_salted_digests(sealed: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made, session, folder = sealed
    done = [r.released.model for r in rounds(made, session, made.start())]
    receipts = [read((folder / f"round-{n:04d}.receipt.json").read_bytes())[0] for n in range(1, ROUNDS + 1)]
    assert receipts[0].start_model == session._run.manifest.model
    assert not {r.model for r in receipts} & {sealing.model_digest(m).hex() for m in done}
    assert [r.start_model for r in receipts[1:]] == [r.model for r in receipts[:-1]]
    assert audit(folder, host_data=None).accepted
    (tmp_path / "model").write_bytes(done[-1].numpy().tobytes())
    command = ["receipt", "verify", str(folder), "--model", str(tmp_path / "model")]
    assert attest(command) == 0
    assert "not-applicable  final_model" in capsys.readouterr().out
    assert attest([*command, "--recipient-key", str(folder / "recipient_key.bin")]) == 0
    assert "pass            final_model" in capsys.readouterr().out


def kill(session: AttestedSession) -> None:
    os.kill(session._run._guest.pid, signal.SIGKILL)


def test_a_new_aggregator_gets_its_state_back_from_a_client(sealed: Any, federation: Callable[..., Federation]):
    made, session, folder = sealed
    done = []
    for finished in rounds(made, session, made.start()):
        done.append(finished.released.model)
        if finished.round == 1:
            kill(session)
    assert all(torch.equal(a, b) for a, b in zip(done, plain_models(federation), strict=True))
    assert session.assurance == "software"
    receipts = [read((folder / f"round-{n:04d}.receipt.json").read_bytes())[0] for n in range(1, ROUNDS + 1)]
    assert receipts[0].evidence["signing_key"] != receipts[1].evidence["signing_key"]


def test_a_run_is_resumed(sealed: Any, federation: Callable[..., Federation]):
    made, session, folder = sealed
    stream = rounds(made, session, made.start())
    state = [next(stream).state for _ in range(2)][-1]
    stream.close()  # type: ignore[attr-defined]
    session.close()
    again = made.session(state, "a run", folder)
    try:
        assert not again._run.locked
        last = list(rounds(made, again, state))
        assert torch.equal(last[-1].released.model, plain_models(federation)[-1])
        # Its last release is stored: cut off before the checkpoint, it is read again without any client.
        state.round -= 1
        ended = made.session(state, "a run", folder)
        (read_again,) = rounds(made, ended, state)
        ended.close()
        assert torch.equal(read_again.released.model, last[-1].released.model)
    finally:
        again.close()


@dataclass
class Kept:
    """What a host could put back, and what the clients knew, after each round."""

    releases: list[bytes] = field(default_factory=list)
    states: list[ServerState] = field(default_factory=list)

    def back(self, folder: Path, to: int, knowing: int) -> ServerState:
        """Put round ``to``'s release back; the clients remember what they knew after round ``knowing``."""
        (folder / "release.bin").write_bytes(self.releases[to - 1])
        return replace(self.states[to - 1], clients=copy.deepcopy(self.states[knowing - 1].clients))


@pytest.fixture
def kept(federation: Callable[..., Federation], tmp_path: Path) -> Any:
    """A federation of five rounds after four, its folder, and what was kept of it."""
    made, folder, found = federation(rounds=5), tmp_path / "attestation", Kept()
    session = made.session(made.start(), "a run", folder)
    assert isinstance(session, AttestedSession)
    stream = rounds(made, session, made.start())
    for _ in range(4):
        state = next(stream).state
        found.releases.append((folder / "release.bin").read_bytes())
        found.states.append(replace(state, clients=copy.deepcopy(state.clients)))
    stream.close()  # type: ignore[attr-defined]
    session.close()
    return made, folder, found


def test_clients_give_no_key_to_a_state_that_they_have_seen_go_on(kept: Any):
    """A client answered round 4, so it knows round 3's receipt. One release back can't be told from a lost one."""
    made, folder, found = kept
    for to in (1, 2):
        with pytest.raises(Unavailable, match=f"client 0 doesn't give .* key: rollback: round {to + 1} is opened"):
            made.session(found.back(folder, to, knowing=4), "a run", folder)
    assert (folder / "refusals.jsonl").read_text().count('"name": "rollback"') == 2, "nobody else is asked"
    made.session(found.back(folder, 3, knowing=4), "a run", folder).close()


def test_who_gave_a_key_remembers_the_receipt_that_came_with_it(kept: Any):
    made, folder, found = kept
    state = found.back(folder, 4, knowing=4)
    made.session(state, "a run", folder).close()
    assert state.clients[0]["head"][0] == 4
    assert state.clients[1]["head"][0] == 3
    # Killed before the next checkpoint, which would hold it: the client's memory is on disk before its key is sealed.
    with pytest.raises(Unavailable, match=r"client 0 doesn't give .* rollback: round 4 is opened, round 4 has"):
        made.session(found.back(folder, 3, knowing=4), "a run", folder)
    # Only who was asked knows more: a host that asks somebody else isn't seen.
    (folder / "heads.bin").unlink()
    made.session(found.back(folder, 3, knowing=4), "a run", folder).close()


def test_another_client_is_asked_where_one_cannot_answer(kept: Any):
    made, folder, found = kept
    state = found.back(folder, 4, knowing=4)
    release = unpack(found.releases[3])
    (folder / "release.bin").write_bytes(pack({**release, "state_keys": [b"", *release["state_keys"][1:]]}))
    made.session(state, "a run", folder).close()
    assert [state.clients[c]["head"][0] for c in range(4)] == [3, 4, 3, 3]
    said = (folder / "refusals.jsonl").read_text()
    assert '"client": 0, "by": "client", "name": "unopenable"' in said
    # Asked again, who knows most comes first.
    (folder / "release.bin").write_bytes(pack({**release, "state_keys": [b""] * 4}))
    with pytest.raises(Unavailable, match="client 3 doesn't give the aggregator its state's key: unopenable"):
        made.session(state, "a run", folder)
    clients = [json.loads(line)["client"] for line in (folder / "refusals.jsonl").read_text().splitlines()]
    assert clients == [0, 1, 0, 2, 3]


def test_an_altered_model_is_refused_by_every_client(sealed: Any):
    made, session, folder = sealed
    stream = rounds(made, session, made.start())
    next(stream)
    path = folder / "model-0001.bin"
    raw = bytearray(path.read_bytes())
    raw[50] ^= 1
    path.write_bytes(raw)
    with pytest.raises(RoundRefused, match=r"least_cohort: 0 clients in round 2.* refused: unopenable x4 .*altered"):
        next(stream)
    lines = (folder / "refusals.jsonl").read_text().splitlines()
    assert sum('"by": "client", "name": "unopenable"' in line for line in lines) == 4


def test_an_aggregator_that_dies_while_it_is_unlocked_stops_the_run(sealed: Any, monkeypatch: pytest.MonkeyPatch):
    made, session, _ = sealed
    stream = rounds(made, session, made.start())
    next(stream)
    ask_key = session._run.ask_key

    def dying(client: int, nonce: bytes) -> dict[str, Any]:
        kill(session)
        return ask_key(client, nonce)

    monkeypatch.setattr(session._run, "ask_key", dying)
    kill(session)
    with pytest.raises(ChannelLost, match="the aggregator is gone"):
        next(stream)
