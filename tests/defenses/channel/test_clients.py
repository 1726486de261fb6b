"""Attested clients in a federation: honest ones lose nothing, tampering is refused by name, and data poison passes."""

import json
import os
import signal
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from privbench.attacks.poisoning import Backdoor, Imitation, Poisoner
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation import attested
from privbench.benchmarks.federation import processes as engines
from privbench.benchmarks.federation.client import Job, Turn
from privbench.benchmarks.federation.federation import Federation
from privbench.benchmarks.federation.settings import FederationSettings
from privbench.benchmarks.tasks import Classification
from privbench.benchmarks.tasks.models import MLP
from privbench.defenses import Defense
from privbench.defenses.accounting import RecordLevel
from privbench.defenses.channel import Attested
from privbench.defenses.local import DPSGD
from privbench.defenses.tee.platforms.host import Guest, Launch
from privbench.defenses.tee.platforms.software import Software
from privbench.defenses.tee.protocol import proof, trainer
from privbench.defenses.tee.protocol import run as host
from privbench.defenses.tee.protocol.session import AttestedSession

CHANNEL = Attested(attest_clients=True)
ARCHITECTURE = MLP(hidden=(16,))
PRIVATE = {"local": DPSGD(), "privacy": RecordLevel(delta=1e-3, clip=1.0, epsilon=8.0)}


@pytest.fixture(scope="module")
def platform() -> Iterator[Software]:
    """One for all tests here: its keys take seconds to make."""
    with Software() as made:
        yield made


class Lent:
    """A platform of which a run may end its own guests alone."""

    def __init__(self, platform: Software):
        self._platform, self.root = platform, platform.root
        self._pids: list[int] = []

    def measurement(self, program: str) -> bytes:
        return self._platform.measurement(program)

    def launch_several(self, launches: list[Launch]) -> list[Guest]:
        guests = self._platform.launch_several(launches)
        self._pids += [guest.pid for guest in guests]
        return guests

    def close(self) -> None:
        for pid in self._pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._pids.clear()


@pytest.fixture
def start(
    platform: Software, task: Classification, mlp: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    """A federation of four clients, and its session."""
    monkeypatch.setitem(host.HOSTS, "software", lambda: Lent(platform))
    sessions: list[AttestedSession] = []

    def make(poisoner: Poisoner | None = None, workers: int = 1, **stations: Any) -> Any:
        made = federation(task, mlp, Defense(**{"channel": CHANNEL, **stations}), poisoner)
        session = made.session(made.start(), "a run", tmp_path, workers)
        assert isinstance(session, AttestedSession)
        sessions.append(session)
        return made, session

    yield make
    for session in sessions:
        session.close()


def federation(task: Classification, mlp: torch.nn.Module, defense: Defense, poisoner: Poisoner | None) -> Federation:
    return Federation(FederationSettings(clients=4, rounds=2), task, mlp, defense, poisoner, architecture=ARCHITECTURE)


def finish(made: Federation, session: AttestedSession, workers: int = 1) -> list[Any]:
    side = made.client_side(session)
    engine = engines.start(side, workers, torch.device("cpu"), apart=True)
    try:
        return [(r.released.model, r.released.refused) for r in made.run(made.start(), side, engine)]
    finally:
        engine.close()


def plainly(made: Federation, **stations: Any) -> list[Tensor]:
    plain = Federation(made.settings, made.task, made.model, Defense(**stations), made.poisoner)
    side = plain.client_side()
    return [r.released.model for r in plain.run(plain.start(), side, engines.Serial(side))]


@pytest.mark.parametrize(
    ("stations", "workers"),
    [({}, 2), (PRIVATE, 1), ({"channel": replace(CHANNEL, downlink="sealed")}, 1)],
    ids=["plain", "DP-SGD", "sealed downlink"],
)
def test_honest_clients_end_at_the_same_model_bit_for_bit(
    start: Callable[..., Any], stations: dict[str, Any], workers: int, tmp_path: Path
):
    made, session = start(None, workers, **stations)
    rounds = finish(made, session, workers)
    plain = plainly(made, **{k: v for k, v in stations.items() if k != "channel"})
    assert all(torch.equal(a, b) for (a, _), b in zip(rounds, plain, strict=True))
    assert [refused for _, refused in rounds] == [{}, {}]
    assert session.assurance == "software"
    assert not (tmp_path / "refusals.jsonl").exists()
    agreed = json.loads((tmp_path / "manifest.json").read_bytes())
    assert agreed["training"]["local"]["_target_"].rpartition(".")[2] == type(made.defense.local).__name__
    assert len(agreed["client_measurements"]) == 1


TAMPERING = {
    "an update of another guest's evidence": (Backdoor(boost="replace", evidence="relayed"), "relayed_evidence"),
    "more epochs": (Backdoor(epochs=2), "wrong_training"),
    "a claim of more records": (Backdoor(inflate=10), "inflated_records"),
}


@pytest.mark.parametrize("case", TAMPERING, ids=str)
def test_a_client_that_tampers_is_refused_by_name_in_every_round(start: Callable[..., Any], case: str):
    poisoner, name = TAMPERING[case]
    made, session = start(poisoner)
    assert [refused for _, refused in finish(made, session)] == [{name: 1}, {name: 1}]


@pytest.mark.parametrize("poisoner", [Backdoor(), Imitation()], ids=["backdoor", "imitation"])
def test_a_client_that_poisons_its_data_alone_passes(start: Callable[..., Any], poisoner: Poisoner):
    """Attestation shows which code ran, not that data are good: the model is the poisoned one, bit for bit."""
    made, session = start(poisoner)
    rounds = finish(made, session)
    assert [refused for _, refused in rounds] == [{}, {}]
    assert all(torch.equal(a, b) for (a, _), b in zip(rounds, plainly(made), strict=True))


def test_tampered_code_is_refused_and_a_dead_guest_is_a_silent_client(
    start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made, session = start(Backdoor(boost="replace"))
    relay = session.relay

    def dying(phase: str, messages: Any, state: Any) -> Any:
        inbox = relay(phase, messages, state)
        if state.round == 0:
            os.kill(session._run._guests._guests[-1].pid, signal.SIGKILL)
        return inbox

    monkeypatch.setattr(session, "relay", dying)
    refused = [refused for _, refused in finish(made, session)]
    # The next round has a new guest; its code is still not the agreed one.
    assert refused == [{"silent": 1}, {"wrong_training_code": 1}]
    said = [json.loads(line) for line in (tmp_path / "refusals.jsonl").read_text().splitlines()]
    assert [(r["round"], r["client"], r["by"], r["name"]) for r in said] == [
        (1, 3, "client", "guest_lost"),
        (1, 3, "aggregator", "silent"),
        (2, 3, "aggregator", "wrong_training_code"),
    ]
    assert session.assurance == "software"


def test_a_guest_that_hangs_is_ended_and_launched_anew(
    start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made, session = start(None, channel=replace(CHANNEL, patience=4.0))
    relay, stopped = session.relay, []

    def stopping(phase: str, messages: Any, state: Any) -> Any:
        inbox = relay(phase, messages, state)
        if not stopped:
            stopped.append(session._run._guests._guests[0].pid)
            os.kill(stopped[0], signal.SIGSTOP)
            return {c: box for c, box in inbox.items() if c == 0} | {1: {**inbox[1], "guests": spare}}
        return inbox

    # Client 1 has a guest of its own, so that the round has an update.
    (launched,) = session._run._host.launch_several(session._run._guests._launches[:1])
    launched.connection.close()
    spare = {"agreed": {launched.socket: launched.pid}}
    monkeypatch.setattr(session, "relay", stopping)
    refused = [refused for _, refused in finish(made, session)]
    assert refused == [{"silent": 3}, {}]
    said = [json.loads(line) for line in (tmp_path / "refusals.jsonl").read_text().splitlines()]
    assert (said[0]["client"], said[0]["name"]) == (0, "guest_lost")
    assert said[0]["reason"] == "the client's guest has not answered for 4 s"
    assert session._run._guests._guests[0].pid != stopped[0]


def test_the_tampered_guest_crafts_what_the_plaintext_client_would(task: Classification, mlp: torch.nn.Module):
    """The patch is real code: with it, training ends at the replaced update."""
    made = federation(task, mlp, Defense(), Backdoor(boost="replace"))
    side = made.client_side()
    side.received.copy_(made.start().model)
    assert made.poisoner is not None
    (source,) = made.poisoner.patches(made.owned).values()
    patched = types.ModuleType("patched")
    exec(source, patched.__dict__)
    layout = {"names": list(made.layout.names), "shapes": made.layout.shapes, "parameters": made.layout.parameters}
    manifest = types.SimpleNamespace(layout=layout, facts=asdict(made.facts), privacy=None, seed=0)
    settings = proof.settings_bytes(attested.training(made))
    turn = Turn(side, Job(3, 1, "update"))
    given: Any = (side.received, turn.records(), 3, 1, 1)
    honest = trainer.Training(cast("Any", manifest), settings).update(*given)
    crafted = patched.Training(manifest, settings).update(*given)
    assert torch.equal(crafted.vector, turn.update(side.received).vector)
    assert not torch.equal(crafted.vector, honest.vector)


@pytest.mark.parametrize(("field", "value"), [("architecture", None), ("device", torch.device("cuda"))])
def test_what_a_guest_cannot_build_is_refused_at_once(
    task: Classification, mlp: torch.nn.Module, field: str, value: Any
):
    given = {"architecture": ARCHITECTURE, field: value}
    with pytest.raises(ConfigError, match=r"defense\.channel\.attest_clients"):
        Federation(FederationSettings(clients=4, rounds=2), task, mlp, Defense(channel=CHANNEL), **given)
