"""What an attested run leaves on disk: the chain for auditors, the last release, and the simulated clients' keys."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privbench.defenses.tee.protocol.manifest import Manifest, Refused
from privbench.defenses.tee.wire import pack, unpack

_MODEL_KEY = b"privbench model key 1"
_CLIENTS, _RECIPIENT, _HEADS = "client_keys.bin", "recipient_key.bin", "heads.bin"


class Folder:
    """The folder of one attested run.

    Args:
        path: ``None`` for one that is gone with :meth:`close`.

    Attributes:
        stored: what the last round released, as it was stored before anybody saw it.
    """

    def __init__(self, path: Path | None):
        self._temporary = tempfile.TemporaryDirectory(prefix="privbench-attestation-") if path is None else None
        self.path = path or Path(self._temporary.name if self._temporary else "")
        self.stored = self._load()

    @property
    def rounds(self) -> int:
        """Rounds that were released."""
        return self.stored["round"] if self.stored else 0

    def abandon(self) -> None:
        """Put aside the chain of a run that starts from nothing again: its releases stay on record."""
        n = 1
        while (aside := self.path.with_name(f"{self.path.name}-abandoned-{n}")).exists():
            n += 1
        (self.path / _CLIENTS).unlink(missing_ok=True)
        shutil.move(self.path, aside)
        self.stored = None

    def client_keys(self, clients: int) -> list[Ed25519PrivateKey]:
        """The clients' signing keys, made at the first call; until the run ends they lie here."""
        made = (Ed25519PrivateKey.generate().private_bytes_raw() for _ in range(clients))
        raw, size = self._secret(_CLIENTS, made), 32
        return [Ed25519PrivateKey.from_private_bytes(raw[i : i + size]) for i in range(0, len(raw), size)]

    def recipient_key(self) -> X25519PrivateKey:
        """The key of who receives models and doesn't train, made at the first call. It stays: it opens the model."""
        made = (X25519PrivateKey.generate().private_bytes_raw() for _ in range(1))
        return X25519PrivateKey.from_private_bytes(self._secret(_RECIPIENT, made))

    def forget_client_keys(self) -> None:
        """A run that has ended needs them no more."""
        (self.path / _CLIENTS).unlink(missing_ok=True)

    def manifest(self) -> Manifest | None:
        """The manifest, if the run was enrolled."""
        path = self.path / "manifest.json"
        return Manifest.read(json.loads(path.read_bytes())) if path.exists() else None

    def countersignatures(self) -> list[bytes]:
        """Each client's, by number."""
        return [bytes.fromhex(s) for s in json.loads((self.path / "countersignatures.json").read_text())]

    def enrolled(self, manifest: Manifest, signatures: list[bytes]) -> None:
        """Keep what everybody agreed on."""
        self.path.mkdir(parents=True, exist_ok=True)
        write(self.path / "countersignatures.json", json.dumps([s.hex() for s in signatures]).encode())
        write(self.path / "manifest.json", manifest.canonical())

    def certificate(self, kind: str, der: bytes) -> None:
        """Keep a certificate, once: of ``certs`` or of software platforms' ``roots``."""
        path = self.path / kind / f"{sha256(der).hexdigest()[:16]}.der"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write(path, der)

    def certificates(self, kind: str) -> list[bytes]:
        """All that were kept."""
        folder = self.path / kind
        return [p.read_bytes() for p in sorted(folder.iterdir())] if folder.exists() else []

    def attempted(self) -> tuple[int, int]:
        """Round and number of the last attempt that clients were asked to answer; (0, 0) before the first."""
        path = self.path / "attempt.bin"
        found = unpack(path.read_bytes()) if path.exists() else {"round": 0, "attempt": 0}
        return found["round"], found["attempt"]

    def attempt(self, round: int, attempt: int) -> None:
        """Keep the number of an attempt before anybody answers it: it stands for the memory of the clients that do."""
        write(self.path / "attempt.bin", pack({"round": round, "attempt": attempt}))

    def heads(self) -> dict[int, tuple[int, bytes]]:
        """The newest receipts, round and digest, that clients learnt of when they gave a key: part of their memory."""
        path = self.path / _HEADS
        found = unpack(path.read_bytes()) if path.exists() else {}
        return {int(client): (round, digest) for client, (round, digest) in found.items()}

    def head(self, client: int, round: int, digest: bytes) -> None:
        """Keep what a client learns, before it gives a key: like its number of the last attempt, none may be lost."""
        known = {**self.heads(), client: (round, digest)}
        write(self.path / _HEADS, pack({str(c): list(head) for c, head in known.items()}))

    def release(self, round: int, answer: dict[str, Any], report: bytes) -> None:
        """Store a release before anybody sees it; of sealed models the newest one stays, readable by recipients."""
        stem = self.path / f"round-{round:04d}"
        for n, sealed in enumerate(answer["full"]):
            write(stem.with_suffix(f".full-{n}.bin"), sealed)
        write(stem.with_suffix(".report.bin"), report)
        write(stem.with_suffix(".receipt.json"), answer["receipt"])
        if "keys" in answer:
            write(self.sealed_model(round), answer["model"])
        kept = {**answer, "report": report, "full": []}
        write(self.path / "release.bin", pack(kept))
        self.stored = kept
        self.sealed_model(round - 1).unlink(missing_ok=True)

    def sealed_model(self, round: int) -> Path:
        """Where a round's model lies for its recipients."""
        return self.path / f"model-{round:04d}.bin"

    def refused(self, round: int, client: int, refusal: Refused, by: str) -> None:
        """Keep a refusal, by name."""
        line = {"round": round, "client": client, "by": by, "name": refusal.name, "reason": refusal.reason}
        with open(self.path / "refusals.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Remove it, if it was temporary."""
        if self._temporary:
            self._temporary.cleanup()

    def _secret(self, name: str, made: Iterator[bytes]) -> bytes:
        path = self.path / name
        if not path.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            write(path, b"".join(made), mode=0o600)
        return path.read_bytes()

    def _load(self) -> dict[str, Any] | None:
        path = self.path / "release.bin"
        return unpack(path.read_bytes()) if path.exists() else None


def model_key(signing: Ed25519PrivateKey) -> X25519PrivateKey:
    """The key that a simulated client's models are sealed to, derived from its other one: it has one secret to keep."""
    derive = HKDF(hashes.SHA256(), 32, None, _MODEL_KEY)
    return X25519PrivateKey.from_private_bytes(derive.derive(signing.private_bytes_raw()))


def write(path: Path, raw: bytes, mode: int = 0o644) -> None:
    """Write a file whole or not at all, and onto the disk before it counts."""
    temporary = path.with_name(path.name + ".tmp")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
