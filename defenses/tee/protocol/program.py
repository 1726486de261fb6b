"""The program that a platform launches and measures: an aggregator behind a socket, one request at a time."""

import json
from collections.abc import Iterator
from multiprocessing.connection import Connection, Listener
from typing import Any

import torch

from privbench.benchmarks.federation import spans
from privbench.benchmarks.federation.spans import span
from privbench.defenses.aggregation import Diverged
from privbench.defenses.tee.platforms.platform import Platform
from privbench.defenses.tee.protocol import sealing
from privbench.defenses.tee.protocol.aggregator import Aggregator, Unreleased, verdicts
from privbench.defenses.tee.protocol.manifest import Manifest, Refused
from privbench.defenses.tee.wire import pack, unpack

PROGRAM = f"{__name__}:serve"


def serve(platform: Platform, socket: str) -> None:
    """The program: answer one host until it hangs up."""
    torch.set_num_threads(1)  # as everywhere: the number of threads changes the order of summation
    with Listener(socket, "AF_UNIX") as listener, listener.accept() as connection:
        aggregator: Aggregator | None = None
        while True:
            try:
                received = connection.recv_bytes()
            except (EOFError, OSError):
                return
            try:
                aggregator, answer = _answer(aggregator, platform, unpack(received), connection)
            except Unreleased as error:
                answer = {**_failure(error.cause), "verdicts": verdicts(error.entries)}
            except Exception as error:  # whatever a host or a client sends, the others' rounds go on
                answer = _failure(error)
            try:
                connection.send_bytes(pack(answer))
            except OSError:
                return


def _failure(error: Exception) -> dict[str, Any]:
    if isinstance(error, Refused):
        return {"refused": error.name, "reason": error.reason}
    if isinstance(error, Diverged):
        return {"diverged": str(error)}
    return {"refused": "malformed_request", "reason": f"{type(error).__name__}: {error}"}


def _answer(
    aggregator: Aggregator | None, platform: Platform, request: dict[str, Any], connection: Connection
) -> tuple[Aggregator | None, dict[str, Any]]:
    kind = request.pop("request")
    spans.switch(bool(request.pop("spans", False)))
    if kind == "configure":
        if aggregator is not None:
            raise Refused("out_of_order", "configured already: one run's manifest for one aggregator")
        manifest = Manifest.read(json.loads(request["manifest"]))
        made = Aggregator(platform, manifest, request["countersignatures"], sealing.vector(request["model"]))
        if request.get("stored"):
            made.resume(request["stored"])
        return made, {"round": made.state.round, "locked": made.locked}
    if aggregator is None:
        for _ in _messages(connection) if kind == "close" else ():
            pass
        raise Refused("out_of_order", "not configured")
    if kind == "ask_key":
        return aggregator, aggregator.ask_key(request["client"], request["nonce"])
    if kind == "unlock":
        aggregator.unlock(request["message"])
        return aggregator, {}
    if kind == "open":
        joins = dict(zip(request["clients"], request["nonces"], strict=True))
        with span("aggregator"):
            answer = aggregator.open(request["round"], request["attempt"], joins)
        return aggregator, {**answer, "spans": spans.plain(spans.take())}
    if kind == "close":
        messages = _messages(connection)
        try:
            with span("aggregator"):
                answer = aggregator.close(messages)
            return aggregator, {**answer, "spans": spans.plain(spans.take())}
        finally:
            for _ in messages:  # what is left after a failure would be taken for the next request
                pass
    raise Refused("malformed_request", f"request {kind!r}")


def _messages(connection: Connection) -> Iterator[bytes]:
    """Messages until an empty one."""
    while message := connection.recv_bytes():
        yield message
