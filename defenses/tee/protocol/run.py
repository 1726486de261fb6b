"""The host's side of an attested run: enrol clients, launch the aggregator, carry messages, keep the record.

It is not trusted with anything but availability. In a simulation it also makes the clients' keys, since it makes the
clients; those let it speak for a client, never read what one has sealed.
"""

import hmac
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privbench.defenses.aggregation import Diverged
from privbench.defenses.channel.channel import ChannelLost, Setup
from privbench.defenses.tee.platforms import Unavailable
from privbench.defenses.tee.platforms.software import Guest, Launch, Software
from privbench.defenses.tee.platforms.software.software import last_words
from privbench.defenses.tee.protocol import guests, sealing
from privbench.defenses.tee.protocol.enrolment import enrol
from privbench.defenses.tee.protocol.guests import Guests
from privbench.defenses.tee.protocol.manifest import Manifest, Refused
from privbench.defenses.tee.protocol.opening import Relying
from privbench.defenses.tee.protocol.program import PROGRAM
from privbench.defenses.tee.wire import pack, unpack

if TYPE_CHECKING:
    from privbench.defenses.channel.attested import Attested

_SALT = b"privbench data salt 1"
PATIENCE = 600.0
"""Seconds without an answer after which the aggregator counts as lost."""


class RoundRefused(RuntimeError):
    """The aggregator refuses to go on, by name; nothing was released."""


@dataclass(frozen=True)
class ReliedOn:
    """What all clients of a run know before the first round; the certificates come with the evidence."""

    manifest: Manifest
    root: bytes | None

    def relying(self, certificates: tuple[bytes, ...]) -> Relying:
        return Relying(self.manifest, certificates, self.root, host_data=self.manifest.platform == "software")

    def __hash__(self) -> int:
        return hash((self.manifest.digest, self.root))


class Run:
    """One attested run.

    Args:
        channel: its configuration.
        setup: of the run.
        finished: rounds that the run's checkpoint holds.

    Attributes:
        client_keys: signing keys by client.
        opened: the round that was opened last, 0 for none since the start.
        stored: what the last round released, as it was stored before anybody saw it.

    Raises:
        Unavailable: the platform can't be had, or the record of an earlier start doesn't fit the checkpoint.
    """

    def __init__(self, channel: "Attested", setup: Setup, finished: int):
        self._setup, self._temporary = setup, None
        if setup.folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="privbench-attestation-")
        self.folder = setup.folder or Path(self._temporary.name if self._temporary else "")
        self.stored = self._load()
        done = self.stored["round"] if self.stored else 0
        if finished == 0 and done > 1:
            self._abandon()
            done = 0
        if done not in (finished, finished + 1):
            hint = "remove the run's folder to start anew"
            raise Unavailable(f"{self.folder} holds {done} rounds, the run's checkpoint {finished}: {hint}")
        # A run that has ended needs no keys any more: what it released is only read again.
        self.client_keys = self._keys() if done < setup.facts.rounds else []
        if (self.folder / "manifest.json").exists():
            self.manifest = Manifest.read(json.loads((self.folder / "manifest.json").read_bytes()))
        else:
            self.manifest = self._enrol(channel)
        self._platform: Software | None = None
        self._guests: Guests | None = None
        try:
            self.restart()
        except BaseException:
            self.close()
            raise

    def restart(self) -> None:
        """Launch the aggregator: new keys, new evidence, and the state that the last receipt vouches for.

        Raises:
            Unavailable: no platform, or the aggregator refuses the manifest or the state.
        """
        wanted = [Launch(PROGRAM, self.manifest.digest, "aggregator")]
        if self._platform is None:
            self._platform = Software()
            if self.manifest.training:
                wanted += guests.launches(self.manifest.digest, self._setup.workers, self._setup.tampered)
        launched = self._platform.launch_several(wanted)
        self._guest: Guest = launched[0]
        if len(launched) > 1:
            self._guests = Guests(self._platform, wanted[1:], launched[1:])
        self._remember("roots", self._platform.root.der)
        self.relying_on = ReliedOn(self.manifest, self._platform.root.der)
        self.opened = 0
        request = {
            "request": "configure",
            "manifest": self.manifest.canonical(),
            "countersignatures": [bytes.fromhex(s) for s in json.loads(self._text("countersignatures.json"))],
            "model": sealing.floats(self._setup.model),
            "stored": self._vouched(),
        }
        try:
            self._ask(request)
        except (ChannelLost, RoundRefused) as error:
            raise Unavailable(f"the aggregator doesn't start: {error}") from None

    @property
    def guests(self) -> dict[str, list[str]]:
        """Sockets of the clients' guests by kind; empty where clients aren't attested."""
        return self._guests.sockets() if self._guests else {}

    def open(self, round: int, attempt: int, joins: dict[int, bytes]) -> dict[str, Any]:
        """Open an attempt; its report and certificates are kept."""
        self.opened = round
        clients = sorted(joins)
        request = {"request": "open", "round": round, "attempt": attempt, "clients": clients}
        answer = self._ask({**request, "nonces": [joins[c] for c in clients]})
        for certificate in answer["certificates"]:
            self._remember("certs", certificate)
        self._report = answer["opening"]["report"]
        self._evidence_bytes = len(self._report) + sum(map(len, answer["certificates"]))
        return answer

    def salt(self, client: int) -> bytes:
        """The client's own for the commitments to its records: the same in all rounds, and never sent."""
        key = self.client_keys[client].private_bytes_raw()
        return hmac.digest(key, _SALT + self.manifest.digest, "sha256")

    def close_round(
        self, round: int, sealed: Iterable[bytes], seen: Callable[[], dict[str, Any]], costs: dict[str, float]
    ) -> dict[str, Any]:
        """Hand over the messages, and store what comes back before anybody sees it.

        Args:
            seen: sizes and times by client, once all messages are through.
            costs: what clients took; the aggregator's are added.

        Raises:
            ChannelLost: the aggregator is gone.
            RoundRefused: it refuses to release.
            Diverged: the model left the finite numbers.
        """
        self._send(pack({"request": "close"}))
        for message in sealed:
            # An empty one would end the stream, and silence everybody after it.
            self._send(message or b"\0")
        self._send(b"")
        answer = self._receive(round)
        own = {"evidence_bytes": self._evidence_bytes, "receipt_bytes": len(answer["receipt"])}
        by_client = {name: {str(c): v for c, v in values.items()} for name, values in seen().items()}
        answer |= {"round": round, **by_client, "costs": {**costs, **answer["costs"], **own}}
        self._store(round, answer)
        return answer

    def refused(self, round: int, client: int, refusal: Refused, by: str) -> None:
        """Keep a refusal, by name."""
        line = {"round": round, "client": client, "by": by, "name": refusal.name, "reason": refusal.reason}
        with open(self.folder / "refusals.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

    def assurance(self) -> str:
        """What stands behind the chain so far, recomputed from its bytes."""
        from privbench.defenses.tee.protocol.audit import assurance

        return assurance(self.folder)

    def close(self) -> None:
        """End the platform; keys in memory go with it."""
        self._end()
        if self._temporary:
            self._temporary.cleanup()

    def _enrol(self, channel: "Attested") -> Manifest:
        manifest, signatures = enrol(channel, self._setup, self.client_keys)
        self.folder.mkdir(parents=True, exist_ok=True)
        write(self.folder / "countersignatures.json", json.dumps([s.hex() for s in signatures]).encode())
        write(self.folder / "manifest.json", manifest.canonical())
        return manifest

    def _keys(self) -> list[Ed25519PrivateKey]:
        """The clients' keys; until the run is finished they lie in a file that its user alone can read."""
        path, size = self.folder / "client_keys.bin", 32
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            made = [Ed25519PrivateKey.generate().private_bytes_raw() for _ in range(self._setup.facts.clients)]
            write(path, b"".join(made), mode=0o600)
        raw = path.read_bytes()
        return [Ed25519PrivateKey.from_private_bytes(raw[i : i + size]) for i in range(0, len(raw), size)]

    def _store(self, round: int, answer: dict[str, Any]) -> None:
        stem = self.folder / f"round-{round:04d}"
        report = self._report
        for n, sealed in enumerate(answer["full"]):
            write(stem.with_suffix(f".full-{n}.bin"), sealed)
        write(stem.with_suffix(".report.bin"), report)
        write(stem.with_suffix(".receipt.json"), answer["receipt"])
        kept = {**answer, "report": report, "full": []}
        write(self.folder / "release.bin", pack(kept))
        self.stored = kept
        if round == self._setup.facts.rounds:
            (self.folder / "client_keys.bin").unlink(missing_ok=True)

    def _load(self) -> dict[str, Any] | None:
        path = self.folder / "release.bin"
        return unpack(path.read_bytes()) if path.exists() else None

    def _vouched(self) -> dict[str, Any] | None:
        if self.stored is None:
            return None
        certificates = [p.read_bytes() for p in sorted((self.folder / "certs").iterdir())]
        roots = [p.read_bytes() for p in sorted((self.folder / "roots").iterdir())]
        wanted = {name: self.stored[name] for name in ("state", "receipt", "report")}
        return {**wanted, "certificates": certificates, "roots": roots}

    def _abandon(self) -> None:
        """Put aside the chain of a run that starts from nothing again: its releases stay on record."""
        n = 1
        while (aside := self.folder.with_name(f"{self.folder.name}-abandoned-{n}")).exists():
            n += 1
        (self.folder / "client_keys.bin").unlink(missing_ok=True)
        shutil.move(self.folder, aside)
        self.stored = None

    def _remember(self, kind: str, der: bytes) -> None:
        path = self.folder / kind / f"{sha256(der).hexdigest()[:16]}.der"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write(path, der)

    def _text(self, name: str) -> str:
        return (self.folder / name).read_text()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self._send(pack(request))
        return self._receive()

    def _send(self, raw: bytes) -> None:
        try:
            self._guest.connection.send_bytes(raw)
        except OSError:
            raise self._lost() from None

    def _receive(self, round: int = 0) -> dict[str, Any]:
        try:
            if not self._guest.connection.poll(PATIENCE):
                os.kill(self._guest.pid, signal.SIGKILL)
                raise ChannelLost(f"the aggregator has not answered for {PATIENCE:.0f} s")
            answer = unpack(self._guest.connection.recv_bytes())
        except (EOFError, OSError):
            raise self._lost() from None
        for client, name, reason in answer.get("verdicts", ()):
            if name != "accepted":
                self.refused(round, client, Refused(name, reason), "aggregator")
        if "refused" in answer:
            raise RoundRefused(f"{answer['refused']}: {answer['reason']}")
        if "diverged" in answer:
            raise Diverged(answer["diverged"])
        return answer

    def _lost(self) -> ChannelLost:
        return ChannelLost(f"the aggregator is gone. {last_words(self._guest.socket)}".strip())

    def _end(self) -> None:
        if self._platform is not None:
            self._platform.close()
            self._platform = None


def write(path: Path, raw: bytes, mode: int = 0o644) -> None:
    """Write a file whole or not at all, and onto the disk before it counts."""
    temporary = path.with_name(path.name + ".tmp")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
