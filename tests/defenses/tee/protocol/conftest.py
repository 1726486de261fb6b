"""A forge of whole runs: what an honest aggregator leaves behind, made in process with software evidence."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from privbench.benchmarks.build import build
from privbench.defenses.accounting import Facts
from privbench.defenses.tee.platforms.software.authority import Authority, Chip
from privbench.defenses.tee.platforms.software.firmware import Launched, evidence
from privbench.defenses.tee.protocol import binding, receipts
from privbench.defenses.tee.protocol.audit import audit
from privbench.defenses.tee.protocol.manifest import Manifest, countersigned, public, roster_bytes
from privbench.defenses.tee.protocol.receipts import Receipt
from privbench.defenses.tee.report import SIGNED

MEASUREMENT = bytes(range(48))
CLIENTS, ROUNDS = 4, 3
FILES = ["manifest.json", "countersignatures.json", "certs/0.der", "certs/1.der", "certs/2.der", "roots/0.der"]
FILES += [f"round-{n:04d}.{kind}" for n in (1, 2, 3) for kind in ("report.bin", "receipt.json", "full-0.bin")]


def sha(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@cache
def authority(number: int) -> tuple[Chip, bytes]:
    """A chip of one software platform, and the platform's root."""
    made = Authority()
    return made.chip(), made.root


@dataclass
class Forge:
    """One run's folder, and the keys of everybody in it.

    Args:
        folder: where it lies.
        changes: of the manifest's fields.
        rounds: how many are run; ``ROUNDS`` are agreed.
        measurement, host_data: of the guest; None is the manifest's digest.
        authority: which software platform's keys sign.
        recipients: of a sealed downlink.
    """

    folder: Path
    changes: dict[str, Any] = field(default_factory=dict)
    rounds: int = ROUNDS
    measurement: bytes = MEASUREMENT
    host_data: bytes | None = None
    authority: int = 0
    recipients: tuple[str, ...] = ()
    signing: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    clients: list[Ed25519PrivateKey] = field(
        default_factory=lambda: [Ed25519PrivateKey.generate() for _ in range(CLIENTS)]
    )
    auditor: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)

    def __post_init__(self) -> None:
        self.manifest = self.enrolled()
        self.plan = None
        if self.manifest.privacy:
            lists = {n: tuple(self.manifest.facts[n]) for n in ("records", "batch", "steps")}
            self.plan = build(self.manifest.privacy).bind(Facts(**{**self.manifest.facts, **lists}))

    def enrolled(self) -> Manifest:
        enroller, salt = Ed25519PrivateKey.generate(), sha("salt", str(self.folder))
        roster = tuple(public(c).hex() for c in self.clients)
        facts = {"clients": CLIENTS, "rounds": ROUNDS, "participation": 1.0, "sampling": "fixed"}
        fields: dict[str, Any] = {
            "run": "a-run",
            "salt": salt,
            "platform": "software",
            "measurements": (MEASUREMENT.hex(),),
            "model": sha("model", 0),
            "layout": {"names": ["w"], "shapes": [[3]], "parameters": 1},
            "schema": sha("schema"),
            "aggregation": {"_target_": "privbench.defenses.aggregation.mean.ClippedMean", "clip": None},
            "release": {"_target_": "privbench.defenses.release.CentralGaussian"},
            "server": {"_target_": "privbench.benchmarks.federation.server.ServerSGD"},
            "privacy": {
                "_target_": "privbench.defenses.accounting.ClientLevel",
                "delta": 0.01,
                "clip": 0.5,
                "noise_multiplier": 2.0,
            },
            "facts": {**facts, "records": [10] * CLIENTS, "batch": [5] * CLIENTS, "steps": [2] * CLIENTS},
            "weighting": "equal",
            "share": "update",
            "learning_rate": 0.1,
            "seed": 7,
            "least_cohort": 2,
            "greatest_age": 60.0,
            "roster": roster,
            "authority": public(enroller).hex(),
            "enrolment": enroller.sign(roster_bytes("a-run", salt, roster, self.recipients)).hex(),
            "recipients": self.recipients,
            "auditors": (self.auditor.public_key().public_bytes_raw().hex(),),
        }
        return Manifest(**{**fields, **self.changes})

    def write(self) -> "Forge":
        """The whole folder, as an honest run leaves it."""
        (self.folder / "certs").mkdir(parents=True)
        (self.folder / "roots").mkdir()
        (self.folder / "manifest.json").write_bytes(self.manifest.canonical())
        self.countersign(self.clients)
        chip, root = authority(self.authority)
        (self.folder / "roots" / "0.der").write_bytes(root)
        for n, certificate in enumerate(chip.certificates):
            (self.folder / "certs" / f"{n}.der").write_bytes(certificate)
        previous = bytes(32)
        for number in range(1, self.rounds + 1):
            previous = self.round(number, previous)
        return self

    def countersign(self, clients: Iterable[Ed25519PrivateKey]) -> None:
        message = countersigned(self.manifest.digest)
        signatures = [c.sign(message).hex() for c in clients]
        (self.folder / "countersignatures.json").write_text(json.dumps(signatures))

    def round(self, number: int, previous: bytes, kem: bytes = b"", **changes: Any) -> bytes:
        """Evidence, receipt and full receipt of one round; the receipt's digest."""
        kem, root = (hashlib.sha256(part or b"%d" % number).digest() for part in (kem, b"root"))
        keys = kem, public(self.signing)
        data = binding.report_data(binding.AGGREGATOR, self.manifest.digest, *keys, root)
        launched = Launched(self.measurement, self.host_data or self.manifest.digest)
        report = evidence(authority(self.authority)[0], launched, data).report
        entries = [self.entry(number, client) for client in range(CLIENTS)]
        entries[-1] |= {"verdict": "unopenable", "reason": "cut short"}
        receipt = Receipt(
            run=self.manifest.run,
            manifest=self.manifest.digest.hex(),
            round=number,
            attempt=1 + (number == 2),
            previous=previous.hex(),
            evidence={
                "signed_sha256": hashlib.sha256(report[:SIGNED]).hexdigest(),
                "kem_key": kem.hex(),
                "signing_key": keys[1].hex(),
                "nonce_root": root.hex(),
            },
            start_model=sha("model", number - 1),
            model=sha("model", number),
            state=sha("state", number),
            invited=CLIENTS,
            accepted=CLIENTS - 1,
            refused={"unopenable": 1},
            inputs=sorted(self.committed(e) for e in entries),
            **receipts.parameters(self.manifest, self.plan),
            statements=self.statements(number),
            time="2026-11-24T12:00:00+00:00",
        )
        envelope = receipts.sign(replace(receipt, **changes), self.signing)
        self.path(number, "report.bin").write_bytes(report)
        self.path(number, "receipt.json").write_bytes(envelope)
        digest = receipts.digest(envelope)
        own = self.auditor.public_key().public_bytes_raw()
        self.path(number, "full-0.bin").write_bytes(receipts.seal_full(entries, own, digest))
        return digest

    def entry(self, number: int, client: int) -> dict[str, Any]:
        salt, sealed = (hashlib.sha256(repr((part, number, client)).encode()).digest() for part in ("salt", "sealed"))
        common = {"client": client, "salt": salt, "sealed_sha256": sealed, "bytes": 100}
        return {**common, "verdict": "accepted", "reason": ""}

    def committed(self, entry: dict[str, Any]) -> str:
        key = public(self.clients[entry["client"]])
        return receipts.commitment(entry["salt"], key, entry["sealed_sha256"]).hex()

    def statements(self, rounds: int) -> list[dict[str, Any]]:
        if self.plan is None:
            return []
        # Round 2 took two attempts, and each is charged.
        numbers = [n for n in range(1, rounds + 1) for _ in range(1 + (n == 2))]
        return self.plan.statements([self.plan.charge(n, range(CLIENTS)) for n in numbers])

    def path(self, number: int, kind: str) -> Path:
        return self.folder / f"round-{number:04d}.{kind}"

    def receipt(self, number: int) -> Receipt:
        return receipts.read(self.path(number, "receipt.json").read_bytes())[0]

    def digest(self, number: int) -> bytes:
        return receipts.digest(self.path(number, "receipt.json").read_bytes())

    def resign(self, number: int, key: Ed25519PrivateKey | None = None, **changes: Any) -> bytes:
        """The receipt with other fields, signed again by the true key; the receipts after it are left as they are."""
        envelope = receipts.sign(replace(self.receipt(number), **changes), key or self.signing)
        self.path(number, "receipt.json").write_bytes(envelope)
        return receipts.digest(envelope)


def failed(forge: Forge, **options: Any) -> list[str]:
    """The names of an audit's failed checks."""
    found = audit(forge.folder, **options)
    assert found.accepted == (not found.failed)
    assert found.assurance == ("none" if found.failed else "software")
    return found.failed


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Forge:
    """A 3-round run with client-level DP. Read only: tests that alter it take ``forge``."""
    return Forge(tmp_path_factory.mktemp("honest") / "run").write()


@pytest.fixture
def forge(honest: Forge, tmp_path: Path) -> Forge:
    """A copy of it."""
    shutil.copytree(honest.folder, tmp_path / "run")
    made = Forge(tmp_path / "run", signing=honest.signing, clients=honest.clients, auditor=honest.auditor)
    made.manifest, made.plan = honest.manifest, honest.plan
    return made


@pytest.fixture
def another(tmp_path: Path) -> Callable[..., Forge]:
    """A run of its own, with other settings."""
    return lambda **settings: Forge(tmp_path / "another", **settings).write()
