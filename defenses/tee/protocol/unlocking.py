"""After a restart under a sealed downlink: clients are asked for the key of the state that the aggregator goes on from.

Whoever gives it remembers the receipt that came with it: the same client gives none to an older state.
"""

import secrets
import time
from typing import TYPE_CHECKING, Any

from privbench.benchmarks.federation.server import ServerState
from privbench.defenses.channel.channel import RoundRefused
from privbench.defenses.tee.platforms import Unavailable
from privbench.defenses.tee.protocol import downlink, sealing
from privbench.defenses.tee.protocol.folder import model_key
from privbench.defenses.tee.protocol.manifest import Refused
from privbench.defenses.tee.protocol.opening import FIRST, Head, opened
from privbench.defenses.tee.wire import unpack

if TYPE_CHECKING:
    from privbench.defenses.tee.protocol.run import Run

MOST = 16
"""Clients that are asked, one after another."""

_OLD = ("rollback", "fork")


def remember(run: "Run", state: ServerState) -> None:
    """Give clients back what they learnt when they gave a key after ``state`` was kept."""
    for client, head in run.folder.heads().items():
        kept = state.clients.setdefault(client, {})
        if head[0] > kept.get("head", (0, FIRST))[0]:
            kept["head"] = head


def unlock(run: "Run", state: ServerState) -> None:
    """Have a client give the key of the last release's state, who knows the newest receipt first.

    Raises:
        Unavailable: none of those asked does; or one sees that the state is an old one, or another chain's.
    """
    release = run.folder.stored
    if not run.locked or release is None or not run.client_keys:
        return
    heads = {c: Head(*state.clients.get(c, {}).get("head", (0, FIRST))) for c in range(len(run.client_keys))}
    said: Unavailable | None = None
    for client in sorted(heads, key=lambda c: (-heads[c].round, c))[:MOST]:
        try:
            head = _give(run, client, heads[client], release)
        except Refused as refusal:
            run.refusals.add(release["round"] + 1, client, refusal, "client")
            said = Unavailable(f"client {client} doesn't give the aggregator its state's key: {refusal}")
            if refusal.name in _OLD:
                break  # who knows less might give it; all who know as much would refuse the rounds that follow
            continue
        except RoundRefused as refusal:
            name, _, reason = str(refusal).partition(": ")
            run.refusals.add(release["round"] + 1, client, Refused(name, reason), "aggregator")
            said = Unavailable(f"the aggregator doesn't take its state's key from client {client}: {refusal}")
            continue
        state.clients.setdefault(client, {})["head"] = (head.round, head.digest)
        return
    assert said is not None
    raise said


def _give(run: "Run", client: int, head: Head, release: dict[str, Any]) -> Head:
    """The client's part: check the evidence and the chain, remember its end, and seal the key to the aggregator."""
    nonce, begun = secrets.token_bytes(32), time.monotonic()
    answer = run.ask_key(client, nonce)
    age = time.monotonic() - begun
    opening, path = opened(answer["opening"]), answer["paths"][str(client)]
    relying = run.relying(tuple(answer["certificates"]))
    private, digest, number = model_key(run.client_keys[client]), run.manifest.digest, release["round"]
    key = downlink.open_key(release["keys"][client], private, digest, number)
    floats = unpack(downlink.open_model(release["model"], key, digest, number))["model"]
    received = downlink.digest(floats, downlink.salt(key))
    relying.check(opening, client, nonce, path, received, head, age, for_key=True)
    own = downlink.open_state_key(release["state_keys"][client], private, digest, number)
    newest = Head(opening.round - 1, opening.previous)
    run.folder.head(client, newest.round, newest.digest)
    place = sealing.place(opening, client)
    run.unlock(sealing.sign(sealing.enclose(own, place, opening.kem_key), place, run.client_keys[client]))
    return newest
