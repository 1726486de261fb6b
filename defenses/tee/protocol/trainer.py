"""The program of an attested client: it trains on its host's records, and proves with what code and settings.

The host owns the data: whatever records it hands over are trained on. It sees neither the update's message in the clear
nor a key. What the guest states is in :mod:`privbench.defenses.tee.protocol.proof`.
"""

import hashlib
import json
import time
from functools import cached_property, lru_cache
from multiprocessing.connection import Connection, Listener
from typing import Any

import torch
from torch import Tensor

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation import spans
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.settings import LocalWork
from privbench.benchmarks.federation.spans import span
from privbench.benchmarks.federation.trainer import Trainer
from privbench.benchmarks.federation.update import Update
from privbench.benchmarks.federation.usage import Stopwatch
from privbench.benchmarks.tasks.models.architecture import make
from privbench.benchmarks.tasks.task import Spec, Split
from privbench.defenses.accounting.guarantee import redrawn
from privbench.defenses.local import Local
from privbench.defenses.tee.platforms.platform import Platform, Unavailable
from privbench.defenses.tee.protocol import downlink, parts, proof, sealing, state
from privbench.defenses.tee.protocol.manifest import Manifest, Refused
from privbench.defenses.tee.protocol.opening import Head, Opening, Relying, opened
from privbench.defenses.tee.protocol.proof import Proof, Statement
from privbench.defenses.tee.report import Malformed
from privbench.defenses.tee.wire import pack, unpack

PROGRAM = f"{__name__}:serve"

_EXPECTED = (Refused, ConfigError, Unavailable, Malformed, KeyError, TypeError, ValueError, RuntimeError)


class Training:
    """What is trained and how, built from settings as the manifest writes them.

    Args:
        manifest: of the run.
        settings: canonical JSON; the digest of what was really used is in every statement.

    Raises:
        ConfigError: if a component can't be built.
    """

    def __init__(self, manifest: Manifest, settings: bytes):
        found = json.loads(settings)
        self.digest, self.manifest = hashlib.sha256(settings).digest(), manifest
        self.plan, self.layout = parts.plan(manifest), parts.layout(manifest)
        inputs = found["inputs"]
        # Only the shape of an input and the number of classes make a model; its weights are the round's.
        name, shape, classes = inputs["name"], tuple(inputs["shape"]), tuple(inputs["classes"])
        spec = Spec(name, shape, classes, torch.zeros(()), torch.ones(()), inputs["domain"])
        self.work: LocalWork = parts.component("work", found["work"])
        self.local: Local = parts.component("local", found["local"])
        model = make(parts.component("model", found["model"]), spec, manifest.seed)
        loss = parts.named("task", found["task"]).loss
        self.clip = parts.clip(manifest, self.local)
        self.trainer = Trainer(model, self.layout, loss, self.local, torch.device("cpu"))

    def update(self, received: Tensor, records: Split, client: int, round: int, attempt: int) -> Update:
        """One client's update after its local mechanism, from the same streams as a client without attestation."""
        seed, drawn = self.manifest.seed, redrawn(self.plan, attempt)
        with span("local_training", client):
            made = self.trainer.train(received, records, self.work, client, self.plan, seed, round, attempt=drawn)
        with span("local_mechanism", client):
            return self.local.send(made, client, self.plan, stream(seed, "send", round, client))


class ClientGuest:
    """Clients of one run, one request at a time; what it is asked carries all that it needs."""

    def __init__(self, platform: Platform):
        self._platform = platform
        self._manifest = lru_cache(maxsize=2)(lambda raw: Manifest.read(json.loads(raw)))
        self._training = lru_cache(maxsize=2)(lambda raw, settings: Training(self._manifest(raw), settings))
        self._relying = lru_cache(maxsize=4)(self._parsed)

    @cached_property
    def _root(self) -> bytes | None:
        """Of a software platform: its own, which proves nothing. AMD's roots are pinned."""
        found = proof.own_root(self._platform.evidence(bytes(64))) if self._platform.name == "software" else None
        return found.der if found else None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What :meth:`train` returns, with what its parts took, if the host asks for ``spans``."""
        spans.switch(bool(request.get("spans")))
        with span("guest", request["client"]):
            done = self.train(request)
        return {**done, "spans": spans.plain(spans.take())}

    def train(self, request: dict[str, Any]) -> dict[str, Any]:
        """Check the opening, train, and seal the update together with its proof.

        Returns:
            ``sealed`` for the aggregator alone, the ``proof`` (which holds digests) for the client's own record,
            seconds by what they were spent on, and the guest's own ``usage``.

        Raises:
            Refused: as :meth:`Relying.check`; nothing is trained then.
        """
        watch, started = Stopwatch(), time.perf_counter()
        manifest, client = self._manifest(request["manifest"]), request["client"]
        opening = opened(request["opening"])
        with span("attestation", client):
            self._check(opening, request)
        checked = time.perf_counter()
        training: Training = self._training(request["manifest"], request["training"])
        data = state.decode(request["records"])
        records = Split(data["x"], data["y"])
        update = training.update(sealing.vector(request["model"]), records, client, opening.round, opening.attempt)
        trained = time.perf_counter()
        encoded = sealing.encode(update)
        statement = Statement(
            manifest=opening.manifest,
            round=opening.round,
            attempt=opening.attempt,
            client_key=manifest.key(client),
            opening=proof.opening_digest(opening),
            commitment=proof.commitment(records.x, records.y, request["salt"]),
            records=len(records),
            training=training.digest,
            update=hashlib.sha256(encoded).digest(),
            clip=training.clip,
        )
        with span("attestation", client):
            evidence = self._platform.evidence(statement.report_data())
            fields = Proof(statement, evidence.report, evidence.certificates).fields()
        with span("encryption", client):
            payload = sealing.attested(encoded, fields)
            sealed = sealing.enclose(payload, sealing.place(opening, client), opening.kem_key)
        seconds = {"checking_seconds": checked - started, "proving_seconds": time.perf_counter() - trained}
        return {"sealed": sealed, "proof": fields, "costs": seconds, "usage": watch.read().__dict__}

    def _parsed(self, raw: bytes, chain: tuple[bytes, ...], tcb_floor: str) -> Relying:
        software = self._manifest(raw).platform == "software"
        return Relying(self._manifest(raw), chain, self._root if software else None, tcb_floor, host_data=software)

    def _check(self, opening: Opening, request: dict[str, Any]) -> None:
        chain = tuple(request["certificates"])
        relying = self._relying(request["manifest"], chain, request["tcb_floor"])
        digest = downlink.digest(request["model"], request["model_salt"])
        head, age = Head(*request["head"]), request["age"]
        relying.check(opening, request["client"], request["nonce"], request["path"], digest, head, age)


def serve(platform: Platform, socket: str) -> None:
    """The program: answer its host's requests, each over a connection of its own, until the platform ends it."""
    torch.set_num_threads(1)  # as everywhere: the number of threads changes the order of summation
    guest = ClientGuest(platform)
    with Listener(socket, "AF_UNIX", backlog=64) as listener:
        while True:
            with listener.accept() as connection:
                _answer(guest, connection)


def _answer(guest: ClientGuest, connection: Connection) -> None:
    try:
        request = unpack(connection.recv_bytes())
    except (EOFError, OSError, Malformed):
        return  # a host that hung up
    try:
        answer = guest.answer(request)
    except Refused as refusal:
        answer = {"refused": refusal.name, "reason": refusal.reason}
    except _EXPECTED as error:
        answer = {"refused": "malformed_request", "reason": f"{type(error).__name__}: {error}"}
    try:
        connection.send_bytes(pack(answer))
    except OSError:
        return
