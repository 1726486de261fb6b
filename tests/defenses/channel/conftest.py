"""An aggregator in this process, whose evidence is signed by a software chip made here; and attested federations."""

import os
import secrets
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import Tensor

from privbench.benchmarks.build import describe
from privbench.benchmarks.federation import processes as engines
from privbench.benchmarks.federation.federation import Federation
from privbench.benchmarks.federation.server import ServerSGD, ServerState
from privbench.benchmarks.federation.settings import FederationSettings
from privbench.benchmarks.federation.update import Layout, Update
from privbench.benchmarks.tasks import Classification
from privbench.defenses import Defense
from privbench.defenses.accounting import Facts
from privbench.defenses.aggregation import ClippedMean, Mean
from privbench.defenses.channel import Attested, Session
from privbench.defenses.release import CentralGaussian, Unchanged
from privbench.defenses.tee.platforms import Evidence
from privbench.defenses.tee.platforms.software import authority, firmware
from privbench.defenses.tee.protocol import sealing
from privbench.defenses.tee.protocol.aggregator import Aggregator
from privbench.defenses.tee.protocol.manifest import Manifest, countersigned, new_salt, public, roster_bytes
from privbench.defenses.tee.protocol.opening import FIRST, Head, Opening, Relying, opened
from privbench.defenses.tee.protocol.session import AttestedSession

TEE = Defense(channel=Attested())
CENTRAL = {"aggregation": ClippedMean(), "release": CentralGaussian()}
LAYOUT = Layout(("w",), ((8,),), 1)
MEASUREMENT = b"m" * 48
CLIENTS = 3


@cache
def chip(now: datetime | None = None) -> authority.Chip:
    return authority.Authority(now).chip()


@dataclass
class Firmware:
    """Evidence of whatever measurement a test gives it."""

    chip: authority.Chip
    launched: firmware.Launched
    name: str = "software"

    def evidence(self, report_data: bytes) -> Evidence:
        return firmware.evidence(self.chip, self.launched, report_data)


@dataclass
class House:
    """A run of three clients: what they agreed on, the aggregator, and the way of a message."""

    changes: dict[str, Any] = field(default_factory=dict)
    measurement: bytes = MEASUREMENT
    made: datetime | None = None

    def __post_init__(self) -> None:
        self.keys = [Ed25519PrivateKey.generate() for _ in range(CLIENTS)]
        self.model = torch.arange(8.0)
        self.manifest = self.enrol()
        self.signatures = [k.sign(countersigned(self.manifest.digest)) for k in self.keys]
        self.firmware = Firmware(chip(self.made), firmware.Launched(self.measurement, self.manifest.digest))
        self.aggregator = self.new()
        self.nonces = [secrets.token_bytes(32) for _ in range(CLIENTS)]

    def enrol(self) -> Manifest:
        salt, owner = new_salt(), Ed25519PrivateKey.generate()
        roster = tuple(public(k).hex() for k in self.keys)
        facts = Facts(CLIENTS, 3, 1.0, "fixed", (10, 20, 30), (10, 10, 10), (1, 2, 3), False)
        fields = {
            "run": "a run",
            "salt": salt,
            "platform": "software",
            "measurements": (MEASUREMENT.hex(),),
            "model": sealing.model_digest(self.model).hex(),
            "layout": {"names": ["w"], "shapes": [[8]], "parameters": 1},
            "schema": "00" * 32,
            "aggregation": describe(Mean()),
            "release": describe(Unchanged()),
            "server": describe(ServerSGD()),
            "privacy": None,
            "facts": asdict(facts),
            "weighting": "records",
            "share": "update",
            "learning_rate": 0.1,
            "seed": 0,
            "least_cohort": 2,
            "greatest_age": 60.0,
            "roster": roster,
            "authority": public(owner).hex(),
            "enrolment": owner.sign(roster_bytes("a run", salt, roster, self.changes.get("recipients", ()))).hex(),
        }
        return Manifest(**{**fields, **self.changes})

    def new(self) -> Aggregator:
        return Aggregator(self.firmware, self.manifest, self.signatures, self.model)

    def open(self, round: int = 1, attempt: int = 1, clients: range | list[int] = range(CLIENTS)) -> Opening:
        answer = self.aggregator.open(round, attempt, {c: self.nonces[c] for c in clients})
        self.paths = {int(c): p for c, p in answer["paths"].items()}
        self.certificates = tuple(answer["certificates"])
        return self.opened(answer)

    def opened(self, answer: dict[str, Any]) -> Opening:
        made = opened(answer["opening"])
        self.report = made.report
        return made

    def relying(self, **changes: Any) -> Relying:
        return replace(Relying(self.manifest, self.certificates, self.firmware.chip.certificates[2]), **changes)

    def check(self, opening: Opening, client: int = 0, **changes: Any) -> None:
        given = {
            "nonce": self.nonces[client],
            "path": self.paths[client],
            "received": sealing.model_digest(self.model),
            "head": Head(),
            "age": 0.0,
        }
        self.relying().check(opening, client, **{**given, **changes})

    def place(self, opening: Opening, client: int, **changes: Any) -> sealing.Place:
        o = opening
        at = sealing.Place(o.manifest, o.round, o.attempt, client, o.start_model, o.previous, o.evidence)
        return replace(at, **changes)

    def update(self, client: int, **changes: Any) -> Update:
        made = Update(torch.full((8,), float(client + 1)), LAYOUT, "update", (client + 1) * 10)
        return replace(made, **changes)

    def message(self, opening: Opening, client: int, update: Update | None = None, **changes: Any) -> bytes:
        place = self.place(opening, client, **changes)
        return sealing.seal(update or self.update(client), place, opening.kem_key, self.keys[client])

    def stored(self, opening: Opening, answer: dict[str, Any]) -> dict[str, Any]:
        """What a host keeps of a round, for an aggregator that takes its state up."""
        return {
            "state": answer["state"],
            "receipt": answer["receipt"],
            "report": opening.report,
            "certificates": list(self.certificates),
            "roots": [self.firmware.chip.certificates[2]],
        }

    def close(self, *messages: bytes) -> dict[str, Any]:
        return self.aggregator.close(iter(messages))


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def build_house() -> Callable[..., House]:
    return House


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


def kill(session: AttestedSession) -> None:
    os.kill(session._run._guest.pid, signal.SIGKILL)


__all__ = ["FIRST", "House"]
