"""The sealed downlink: models reach clients and who measures them, and nobody that carries or stores them."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from torch import Tensor

from privbench.benchmarks.federation import engine as engines
from privbench.benchmarks.federation.federation import Federation
from privbench.benchmarks.federation.server import ServerAdam, ServerState
from privbench.benchmarks.federation.settings import FederationSettings
from privbench.benchmarks.tasks import Classification
from privbench.defenses import Defense
from privbench.defenses.channel import Attested, ChannelLost
from privbench.defenses.tee.platforms import Unavailable
from privbench.defenses.tee.protocol import downlink, sealing
from privbench.defenses.tee.protocol.audit import audit
from privbench.defenses.tee.protocol.manifest import Manifest, Refused
from privbench.defenses.tee.protocol.receipts import read
from privbench.defenses.tee.protocol.session import AttestedSession

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
    connection = session._run._guest.connection
    send, receive = connection.send_bytes, connection.recv_bytes

    def sent(raw: bytes) -> None:
        carried.append(raw)
        send(raw)

    def received() -> bytes:
        carried.append(receive())
        return carried[-1]

    monkeypatch.setattr(connection, "send_bytes", sent, raising=False)
    monkeypatch.setattr(connection, "recv_bytes", received, raising=False)
    done = [r.released.model for r in rounds(made, session, made.start())]
    expected = plain_models(federation)
    assert all(torch.equal(a, b) for a, b in zip(done, expected, strict=True))
    files = [p.read_bytes() for p in folder.rglob("*") if p.is_file()]
    for model in expected:
        assert not any(mark(model) in raw for raw in (*files, *carried))
    # Such a search does find what goes in the clear.
    assert not any(mark(made.start().model) in raw for raw in files)
    plain = federation(Defense(channel=Attested()))
    other = plain.session(plain.start(), "a run", folder.parent / "plain")
    assert isinstance(other, AttestedSession)
    try:
        list(rounds(plain, other, plain.start()))
    finally:
        other.close()
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


def test_receipts_name_models_by_salted_digests(sealed: Any):
    made, session, folder = sealed
    done = [r.released.model for r in rounds(made, session, made.start())]
    receipts = [read((folder / f"round-{n:04d}.receipt.json").read_bytes())[0] for n in range(1, ROUNDS + 1)]
    assert receipts[0].start_model == session._run.manifest.model
    assert not {r.model for r in receipts} & {sealing.model_digest(m).hex() for m in done}
    assert [r.start_model for r in receipts[1:]] == [r.model for r in receipts[:-1]]
    assert audit(folder, host_data=None).accepted


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


def test_a_client_that_knows_more_gives_no_key_to_an_older_state(sealed: Any):
    made, session, folder = sealed
    kept = []
    stream = rounds(made, session, made.start())
    for _ in range(2):
        state = next(stream).state
        kept.append((folder / "release.bin").read_bytes())
    stream.close()  # type: ignore[attr-defined]
    session.close()
    # The host puts round 1's release back, which clients have gone beyond.
    (folder / "release.bin").write_bytes(kept[0])
    state.round = 1
    state.clients = {2: {"head": (2, bytes(32))}}
    with pytest.raises(Unavailable, match="client 2 doesn't give the aggregator its state's key: rollback"):
        made.session(state, "a run", folder)


def test_an_altered_model_is_refused_by_every_client(sealed: Any):
    made, session, folder = sealed
    stream = rounds(made, session, made.start())
    next(stream)
    path = folder / "model-0001.bin"
    raw = bytearray(path.read_bytes())
    raw[50] ^= 1
    path.write_bytes(raw)
    with pytest.raises(Exception, match="least_cohort"):
        next(stream)
    lines = (folder / "refusals.jsonl").read_text().splitlines()
    assert sum('"by": "client", "name": "unopenable"' in line for line in lines) == 4


def recipients() -> tuple[list[X25519PrivateKey], tuple[str, ...]]:
    keys = [X25519PrivateKey.generate() for _ in range(4)]
    return keys, tuple(k.public_key().public_bytes_raw().hex() for k in keys)


@pytest.fixture
def released(build_house: Callable[..., Any]) -> Any:
    """A house, its recipients' keys, and what its first round released."""
    keys, public = recipients()
    house = build_house(changes={"recipients": public})
    opening = house.open()
    return house, keys, house.close(*(house.message(opening, c) for c in range(3)))


def resumed(released: Any, **changes: Any) -> Any:
    """A new aggregator that has the release's state, sealed."""
    house, _, answer = released
    certificates = list(house.certificates)
    house.aggregator = house.new()
    stored = {n: answer[n] for n in ("state", "receipt")} | {"report": house.report, "certificates": certificates}
    house.aggregator.resume({**stored, "roots": [certificates[-1]], **changes})
    return house


@pytest.fixture
def locked(released: Any) -> Any:
    house, keys, answer = released
    opened_round = house.aggregator
    assert not opened_round.locked
    return resumed((house, keys, answer)), keys, answer


def ask(house: Any, client: int = 1) -> Any:
    answer = house.aggregator.ask_key(client, house.nonces[client])
    house.paths, house.certificates = {client: answer["paths"][str(client)]}, tuple(answer["certificates"])
    return house.opened(answer)


def test_the_key_opens_the_state_and_nothing_else_does(locked: Any):
    house, keys, answer = locked
    key = downlink.open_key(answer["keys"][1], keys[1], house.manifest.digest, 1)
    assert house.aggregator.locked
    with pytest.raises(Refused, match="out_of_order"):
        house.open(2)
    opening = ask(house)
    assert (opening.round, opening.attempt) == (2, 0)
    wrong = sealing.enclose(bytes(32), house.place(opening, 1), opening.kem_key)
    with pytest.raises(Refused, match="unopenable"):
        house.aggregator.unlock(sealing.sign(wrong, house.place(opening, 1), house.keys[1]))
    with pytest.raises(Refused, match="out_of_order"):
        house.aggregator.unlock(b"")
    opening = ask(house)
    right = sealing.enclose(key, house.place(opening, 1), opening.kem_key)
    # Only the client that was asked: its nonce is in the evidence, another's isn't.
    for client, name in ((2, "not_invited"),):
        place = house.place(opening, client)
        with pytest.raises(Refused, match=name):
            house.aggregator.unlock(sealing.sign(sealing.enclose(key, place, opening.kem_key), place, house.keys[2]))
    opening = ask(house)
    right = sealing.enclose(key, house.place(opening, 1), opening.kem_key)
    house.aggregator.unlock(sealing.sign(right, house.place(opening, 1), house.keys[1]))
    assert not house.aggregator.locked
    assert house.open(2).round == 2
    with pytest.raises(Refused, match="out_of_order"):
        house.aggregator.ask_key(1, house.nonces[1])


def test_a_release_opens_for_its_recipients_in_its_round_alone(released: Any):
    house, keys, answer = released
    digest = house.manifest.digest
    opened = [downlink.open_key(s, k, digest, 1) for s, k in zip(answer["keys"], keys, strict=True)]
    assert len(set(opened)) == 1
    for sealed, private, manifest, number in (
        (answer["keys"][0], keys[1], digest, 1),
        (answer["keys"][0], keys[0], digest, 2),
        (answer["keys"][0], keys[0], bytes(32), 1),
        (answer["keys"][0][:-1], keys[0], digest, 1),
        (b"", keys[0], digest, 1),
    ):
        with pytest.raises(Refused, match="unopenable"):
            downlink.open_key(sealed, private, manifest, number)
    for sealed, number in ((answer["model"][:-1], 1), (answer["state"], 1), (answer["model"], 2), (b"", 1)):
        with pytest.raises(Refused, match="unopenable"):
            downlink.open_model(sealed, opened[0], digest, number)
    with pytest.raises(Refused, match="unopenable"):
        downlink.open_state(answer["model"], opened[0], digest, 1)


def test_recipients_are_enrolled_like_clients(build_house: Callable[..., Any]):
    _, public = recipients()
    house = build_house(changes={"recipients": public})
    added = {**house.manifest.__dict__, "recipients": (*public, recipients()[1][0])}
    with pytest.raises(Refused, match="unsigned_roster"):
        Manifest(**added).check_enrolment()
    with pytest.raises(Refused, match="unsigned_roster: 1 recipients' keys for 3 clients"):
        Manifest(**{**added, "recipients": public[:1]}).check_enrolment()


def test_a_manifest_without_recipients_is_spelled_as_before(build_house: Callable[..., Any]):
    assert b"recipients" not in build_house().manifest.canonical()


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
