"""The host's side of an attested run: enrol clients, launch the aggregator, carry messages, keep the record.

It is not trusted with anything but availability. In a simulation it also makes the clients' keys, since it makes the
clients; those let it speak for a client, never read what one has sealed.
"""

import hmac
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from privbench.benchmarks.federation import spans
from privbench.defenses.aggregation import Diverged
from privbench.defenses.channel.channel import ChannelLost, RoundRefused, Setup
from privbench.defenses.tee.platforms import Unavailable
from privbench.defenses.tee.platforms.host import Guest, Host, Launch, end, hurry, last_words
from privbench.defenses.tee.platforms.same_guest import SameGuest
from privbench.defenses.tee.platforms.software import Software
from privbench.defenses.tee.protocol import downlink, guests, relied, sealing
from privbench.defenses.tee.protocol.enrolment import enrol
from privbench.defenses.tee.protocol.folder import Folder, model_key
from privbench.defenses.tee.protocol.guests import Guests
from privbench.defenses.tee.protocol.manifest import Manifest, Refused
from privbench.defenses.tee.protocol.opening import Relying
from privbench.defenses.tee.protocol.program import PROGRAM
from privbench.defenses.tee.protocol.refusals import Refusals
from privbench.defenses.tee.wire import pack, unpack

if TYPE_CHECKING:
    from privbench.defenses.channel.attested import Attested

_SALT = b"privbench data salt 1"
HOSTS: dict[str, Callable[[], Host]] = {"software": Software, "sev_snp": SameGuest}
"""By the configuration's ``platform``."""

_KINDS = {"certificates": "certs", "roots": "roots"}


class Run:
    """One attested run.

    Args:
        channel: its configuration.
        setup: of the run.
        finished: rounds that the run's checkpoint holds.

    Attributes:
        folder: what it keeps.
        client_keys: signing keys by client; none once all rounds were released.
        refusals: by all parties.
        opened: the round that was opened last, 0 for none since the start.

    Raises:
        Unavailable: the platform can't be had, or the record of an earlier start doesn't fit the checkpoint.
    """

    def __init__(self, channel: "Attested", setup: Setup, finished: int):
        self.channel, self._setup, self.folder = channel, setup, Folder(setup.folder)
        if finished == 0 and self.folder.rounds > 1:
            self.folder.abandon()
        done = self.folder.rounds
        if done not in (finished, finished + 1):
            hint = "remove the run's folder to start anew"
            raise Unavailable(f"{self.folder.path} holds {done} rounds, the run's checkpoint {finished}: {hint}")
        self.client_keys: list[Ed25519PrivateKey] = []
        if done < setup.facts.rounds:
            self.client_keys = self.folder.client_keys(setup.facts.clients)
        else:
            self.folder.forget_client_keys()  # a run that was killed when it had released the last
        self.refusals = Refusals(self.folder)
        self._host: Host = HOSTS[channel.platform]()
        self._guests: Guests | None = None
        try:
            self.manifest = self.folder.manifest() or self._enrol()
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
        if self.manifest.training and self._guests is None:
            wanted += guests.launches(self.manifest.digest, self._setup.workers, self._setup.tampered)
        launched = self._host.launch_several(wanted)
        self._guest: Guest = launched[0]
        hurry(self._guest.connection, self.channel.patience)
        if len(launched) > 1:
            self._guests = Guests(self._host, wanted[1:], launched[1:])
        root = self._host.root.der if self._host.root else None
        if root:
            self.folder.certificate("roots", root)
        self.relying_on = relied.ReliedOn(self.manifest, root, self.channel.tcb_floor)
        self.opened = 0
        request = {
            "request": "configure",
            "manifest": self.manifest.canonical(),
            "countersignatures": self.folder.countersignatures(),
            "model": sealing.floats(self._setup.model),
            "stored": self._vouched(),
        }
        try:
            self.locked: bool = self._ask(request)["locked"]
        except (ChannelLost, RoundRefused) as error:
            raise Unavailable(f"the aggregator doesn't start: {error}") from None

    def relying(self, certificates: tuple[bytes, ...]) -> Relying:
        """What each client relies on, with the certificates that came with the evidence."""
        return relied.relying(self.relying_on, certificates)

    def ask_key(self, client: int, nonce: bytes) -> dict[str, Any]:
        """An opening for a client that holds the key of the state: what :meth:`open` returns, without an attempt."""
        return self._certified(self._ask({"request": "ask_key", "client": client, "nonce": nonce}))

    def unlock(self, message: bytes) -> None:
        """Hand that client's message over, after which rounds can be opened."""
        self._ask({"request": "unlock", "message": message})
        self.locked = False

    def sealed_for(self, client: int) -> dict[str, Any]:
        """The last release's key as it was sealed to a client, and where the model lies; nothing where it is plain."""
        stored = self.folder.stored
        if stored is None or "keys" not in stored:
            return {}
        return {"key": stored["keys"][client], "model": str(self.folder.sealed_model(stored["round"]))}

    def measured(self, answer: dict[str, Any]) -> dict[str, Any]:
        """What is in a sealed release, for the recipient who measures models and trains none."""
        digest, number = self.manifest.digest, answer["round"]
        key = downlink.open_key(answer["keys"][-1], self.folder.recipient_key(), digest, number)
        return unpack(downlink.open_model(answer["model"], key, digest, number))

    @property
    def guests(self) -> dict[str, dict[str, int]]:
        """Sockets and processes of the clients' guests by kind; empty where clients aren't attested."""
        return self._guests.sockets() if self._guests else {}

    def open(self, round: int, attempt: int, joins: dict[int, bytes]) -> dict[str, Any]:
        """Open an attempt; its report and certificates are kept."""
        self.opened = round
        clients = sorted(joins)
        # First of all the number is spent: whatever happens from here on may release.
        self.folder.attempt(round, attempt)
        request = {"request": "open", "round": round, "attempt": attempt, "clients": clients}
        request["spans"] = spans.recording()
        answer = self._certified(self._ask({**request, "nonces": [joins[c] for c in clients]}))
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
        self._send(pack({"request": "close", "spans": spans.recording()}))
        for message in sealed:
            # An empty one would end the stream, and silence everybody after it.
            self._send(message or b"\0")
        self._send(b"")
        answer = self._receive(round)
        down = len(answer["model"]) + len(answer["keys"][0] if "keys" in answer else b"")
        own = {"evidence_bytes": self._evidence_bytes, "receipt_bytes": len(answer["receipt"]), "downlink_bytes": down}
        by_client = {name: {str(c): v for c, v in values.items()} for name, values in seen().items()}
        answer |= {"round": round, **by_client, "costs": {**costs, **answer["costs"], **own}}
        self.folder.release(round, answer, self._report)
        if round == self._setup.facts.rounds:
            self.folder.forget_client_keys()
        return answer

    def assurance(self) -> str:
        """What stands behind the chain so far, recomputed from its bytes."""
        from privbench.defenses.tee.protocol.audit import assurance

        return assurance(self.folder.path)

    def close(self, over: bool = False) -> None:
        """End the platform; keys in memory go with it, and those on disk with a run that is over."""
        if over:
            self.folder.forget_client_keys()
        self._host.close()
        self.folder.close()

    def _enrol(self) -> Manifest:
        keys: list[X25519PrivateKey] = []
        if self.channel.downlink == "sealed":
            keys = [*map(model_key, self.client_keys), self.folder.recipient_key()]
        recipients = [key.public_key().public_bytes_raw().hex() for key in keys]
        manifest, signatures = enrol(self.channel, self._setup, self._host.measurement, self.client_keys, recipients)
        self.folder.enrolled(manifest, signatures)
        return manifest

    def _vouched(self) -> dict[str, Any] | None:
        if (stored := self.folder.stored) is None:
            return None
        wanted = {name: stored[name] for name in ("state", "receipt", "report")}
        return {**wanted, **{name: self.folder.certificates(kind) for name, kind in _KINDS.items()}}

    def _certified(self, answer: dict[str, Any]) -> dict[str, Any]:
        for certificate in answer["certificates"]:
            self.folder.certificate("certs", certificate)
        return answer

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self._send(pack(request))
        return self._receive()

    def _send(self, raw: bytes) -> None:
        try:
            self._guest.connection.send_bytes(raw)
        except BlockingIOError:
            raise self._stuck() from None
        except OSError:
            raise self._lost() from None

    def _receive(self, round: int = 0) -> dict[str, Any]:
        try:
            if not self._guest.connection.poll(self.channel.patience):
                raise BlockingIOError
            answer = unpack(self._guest.connection.recv_bytes())
        except BlockingIOError:
            raise self._stuck() from None
        except (EOFError, OSError):
            raise self._lost() from None
        spans.adopt(spans.read(answer.pop("spans", ())))
        for client, name, reason in answer.get("verdicts", ()):
            if name != "accepted":
                self.refusals.add(round, client, Refused(name, reason), "aggregator")
        if "refused" in answer:
            raise RoundRefused(f"{answer['refused']}: {answer['reason']}{self.refusals.why(self.opened)}")
        if "diverged" in answer:
            raise Diverged(answer["diverged"])
        return answer

    def _stuck(self) -> ChannelLost:
        end(self._guest.pid)
        return ChannelLost(f"the aggregator has not answered for {self.channel.patience:g} s")

    def _lost(self) -> ChannelLost:
        return ChannelLost(f"the aggregator is gone. {last_words(self._guest.socket)}".strip())
