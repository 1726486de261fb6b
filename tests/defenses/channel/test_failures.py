"""Aggregators that die or hang, full disks, records that don't fit: tried again or stopped by name, counted once."""

import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from privbench.benchmarks.federation import processes as engines
from privbench.benchmarks.federation.federation import Federation
from privbench.defenses import Defense
from privbench.defenses.accounting import ClientLevel, RecordLevel
from privbench.defenses.channel import Attested, ChannelLost
from privbench.defenses.local import DPSGD
from privbench.defenses.tee.platforms import Unavailable
from privbench.defenses.tee.platforms.host import hurry
from privbench.defenses.tee.protocol import folder as kept
from privbench.defenses.tee.protocol import state as states
from privbench.defenses.tee.protocol.receipts import read
from privbench.defenses.tee.protocol.session import AttestedSession

from .conftest import CENTRAL, finish, kill, plain_model


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
        assert (receipt.attempt, len(last.state.ledger)) == (2, 3)
        assert receipt.statements == made.plan.statements(last.state.ledger)
        assert receipt.statements[0]["epsilon"] > 8.5
        assert session.assurance == "software", "the audit counts them too"
    finally:
        session.close()


def test_an_attempt_with_fresh_noise_has_a_cohort_of_its_own(
    federation: Callable[..., Federation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Other noise on the same sample would cost more than the second sampled step that is charged."""
    guarantee = ClientLevel(delta=1e-3, clip=0.3, noise_multiplier=1.0, noise_source="system")
    made = federation(Defense(channel=Attested(), privacy=guarantee, **CENTRAL), clients=8, participation=0.5)
    session = made.session(made.start(), "a run", tmp_path)
    assert isinstance(session, AttestedSession)
    opened, asked = session._run.open, []

    def dying(round: int, attempt: int, joins: dict[int, bytes]) -> dict[str, Any]:
        asked.append((round, attempt, tuple(joins)))
        answer = opened(round, attempt, joins)
        if len(asked) == 1:
            kill(session)
        return answer

    monkeypatch.setattr(session._run, "open", dying)
    try:
        first = finish(made, session, made.start())[0]
        numbers, cohorts = [a[:2] for a in asked], [a[2] for a in asked]
        assert numbers == [(1, 1), (1, 2), (2, 1)]
        assert cohorts[0] != cohorts[1] == first.invited
        receipt = read((tmp_path / "round-0001.receipt.json").read_bytes())[0]
        assert (receipt.accepted, receipt.refused) == (len(cohorts[1]), {})
        assert session.assurance == "software"
    finally:
        session.close()


def test_a_receipt_charges_each_attempt_to_the_cohort_that_it_invited(
    federation: Callable[..., Federation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    guarantee = RecordLevel(delta=1e-3, clip=1.0, noise_multiplier=2.0, noise_source="system")
    private = Defense(channel=Attested(), local=DPSGD(), privacy=guarantee)
    made = federation(private, clients=8, participation=0.5, rounds=1)
    session = made.session(made.start(), "a run", tmp_path)
    assert isinstance(session, AttestedSession)
    try:
        once(session, monkeypatch, 1)
        (last,) = finish(made, session, made.start())
        assert made.plan is not None
        receipt = read((tmp_path / "round-0001.receipt.json").read_bytes())[0]
        assert receipt.statements == made.plan.statements(last.state.ledger)
        one, other = last.state.ledger
        assert one != other
        stored = kept.unpack((tmp_path / "release.bin").read_bytes())
        assert states.decode(stored["state"])["ledger"] == [one, other]
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


def cut_off_after_a_release(made: Federation, folder: Path) -> tuple[list[Any], list[Any]]:
    """The rounds of a run of two, and those of its resumption from round 1, when round 2 is stored in ``folder``."""
    session = made.session(made.start(), "a run", folder)
    first = finish(made, session, made.start())
    session.close()
    state = made.start()
    state.round, state.model = 1, first[0].released.model
    state.ledger = first[0].state.ledger[:1]
    again = made.session(state, "a run", folder)
    try:
        return first, finish(made, again, state)
    finally:
        again.close()


def test_a_release_that_was_stored_is_published_not_made_again(federation: Callable[..., Federation], tmp_path: Path):
    """Cut off between the aggregator's release and the checkpoint, with noise that nobody could draw twice."""
    noisy = ClientLevel(delta=1e-3, clip=0.3, epsilon=8.0, noise_source="system")
    made = federation(Defense(channel=Attested(), privacy=noisy, **CENTRAL))
    first, rounds = cut_off_after_a_release(made, tmp_path)
    assert [r.round for r in rounds] == [2]
    assert torch.equal(rounds[0].released.model, first[1].released.model)
    assert len(rounds[0].state.ledger) == 2
    assert rounds[0].views["network"].rounds[-1].participants == (0, 1, 2, 3)


def test_a_stored_release_is_published_although_the_budget_allows_no_other_attempt(
    federation: Callable[..., Federation], tmp_path: Path
):
    """It is counted once, as it would have been without the interruption; another attempt would be refused."""
    noisy = ClientLevel(delta=1e-3, clip=0.3, epsilon=8.0, budget=8.0, noise_source="system")
    made = federation(Defense(channel=Attested(), privacy=noisy, **CENTRAL))
    assert made.plan is not None
    assert (made.plan.affordable(), made.plan.affordable(lost=1)) == (2, 1)
    first, (last,) = cut_off_after_a_release(made, tmp_path)
    assert torch.equal(last.released.model, first[1].released.model)
    assert (last.last, len(last.state.ledger)) == (True, 2)


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
