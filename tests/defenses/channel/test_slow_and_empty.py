"""Rounds that take long, that nobody is drawn for, and that everybody refuses."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from privbench.benchmarks.federation import processes as engines
from privbench.benchmarks.federation.federation import Federation
from privbench.benchmarks.federation.settings import FederationSettings
from privbench.benchmarks.tasks import Classification
from privbench.defenses import Defense
from privbench.defenses.accounting import ClientLevel
from privbench.defenses.aggregation import ClippedMean
from privbench.defenses.channel import Attested, RoundRefused
from privbench.defenses.release import CentralGaussian
from privbench.defenses.tee import policy
from privbench.defenses.tee.protocol.manifest import Refused
from privbench.defenses.tee.protocol.opening import Opening
from privbench.defenses.tee.protocol.session import AttestedSession
from privbench.defenses.tee.protocol.trainer import ClientGuest

CENTRAL = {"aggregation": ClippedMean(), "release": CentralGaussian()}
SAMPLED = {**CENTRAL, "privacy": ClientLevel(delta=1e-3, clip=0.3, epsilon=8.0)}


@pytest.fixture
def start(task: Classification, mlp: torch.nn.Module, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """A federation of four clients, its session, and what goes through its rounds."""
    sessions: list[AttestedSession] = []

    def make(channel: Attested, stations: dict[str, Any] | None = None, **settings: Any) -> Any:
        given = FederationSettings(**{"clients": 4, "rounds": 1, **settings})
        made = Federation(given, task, mlp, Defense(channel=channel, **(stations or {})))
        session = made.session(made.start(), "a run", tmp_path / "attestation")
        assert isinstance(session, AttestedSession)
        sessions.append(session)

        def finish() -> list[Any]:
            side = made.client_side(session)
            engine = engines.start(side, 1, torch.device("cpu"), apart=True)
            try:
                return list(made.run(made.start(), side, engine))
            finally:
                engine.close()

        return made, session, finish

    yield make
    for session in sessions:
        session.close()


def test_a_client_whose_turn_comes_late_has_not_old_evidence(
    start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """All clients get the opening when it is made; that one worker simulates them in a row is none of their doing."""
    _, session, finish = start(Attested(greatest_age=3.0))
    client = session.client

    def slow(phase: str, *rest: Any) -> Any:
        time.sleep(1.2 if phase == "update" else 0.0)
        return client(phase, *rest)

    monkeypatch.setattr(session, "client", slow)
    (finished,) = finish()
    assert finished.views["server_operator"].rounds[-1].participants == (0, 1, 2, 3)
    assert not (tmp_path / "attestation" / "refusals.jsonl").exists()


@pytest.mark.parametrize("stations", [{}, SAMPLED], ids=["a least cohort", "sampled"])
def test_a_round_that_everybody_refuses_is_not_released_as_noise(
    start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stations: dict[str, Any]
):
    _, session, finish = start(Attested(greatest_age=0.3), stations, participation=0.9 if stations else 1.0)
    opening = session._run.open

    def late(*given: Any) -> Any:
        answer = opening(*given)
        time.sleep(0.4)
        return answer

    monkeypatch.setattr(session._run, "open", late)
    said = r"clients refused: stale_evidence x\d \(.* s since the nonce, 0 to 0\.3 are right\)"
    name = "no_update: nobody sends one in round 1" if stations else "least_cohort: 0 clients in round 1, at least 1"
    with pytest.raises(RoundRefused, match=rf"{name}.*nothing is released; {said}"):
        finish()
    assert session._run.manifest.least_cohort == (0 if stations else 1)
    assert not list((tmp_path / "attestation").glob("round-*"))


def test_an_empty_cohort_looks_like_any_other_under_a_sealed_downlink(start: Callable[..., Any]):
    settings: dict[str, Any] = {"participation": 0.15, "rounds": 4}
    made, session, finish = start(Attested(downlink="sealed"), SAMPLED, **settings)
    done = finish()
    took_part = [len(r.views["server_operator"].rounds[-1].participants) for r in done]
    assert 0 in took_part
    assert max(took_part) > 0
    plain = Federation(made.settings, made.task, made.model, Defense(**SAMPLED))
    side = plain.client_side()
    expected = [r.released.model for r in plain.run(plain.start(), side, engines.Serial(side))]
    assert all(torch.equal(a.released.model, b) for a, b in zip(done, expected, strict=True))
    assert session.assurance == "software"


def test_an_attested_clients_guest_demands_the_firmware_that_its_client_does(
    house: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(policy, "ADVISORY", {name: {"snp": 255} for name in policy.COMPONENTS})
    opening: Opening = house.open()
    request = {
        "manifest": house.manifest.canonical(),
        "certificates": list(house.certificates),
        "client": 0,
        "nonce": house.nonces[0],
        "path": house.paths[0],
        "model": house.model.numpy().tobytes(),
        "model_salt": None,
        "head": [0, bytes(32)],
        "age": 0.0,
    }
    guest = ClientGuest(house.firmware)
    guest._check(opening, {**request, "tcb_floor": "none"})
    with pytest.raises(Refused, match="evidence: tcb_floor"):
        guest._check(opening, {**request, "tcb_floor": "advisory"})
