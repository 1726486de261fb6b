"""What the ranks of a launch other than 0 do: make a run's clients from its configuration, and train them."""

import hashlib
from contextlib import ExitStack
from importlib import metadata
from typing import Any, NoReturn

import torch

from privbench.benchmarks.experiment import Prepared, prepare
from privbench.benchmarks.federation.client import ClientSide
from privbench.benchmarks.federation.distributed import Distributed, member, serve
from privbench.benchmarks.federation.engine import Origin
from privbench.benchmarks.results.record import PACKAGES, revision


def origin(prepared: Prepared, side: ClientSide, per_sample: str | None) -> Origin:
    """What other ranks make ``side`` of."""
    return Origin(prepared.config, per_sample, facts(prepared, side))


def facts(prepared: Prepared, side: ClientSide) -> dict[str, Any]:
    """What has to be the same in all ranks, since numbers depend on it."""
    return {
        "run": prepared.id,
        "revision": revision(),
        "versions": {name: metadata.version(name) for name in PACKAGES if name != "privbench"},
        "data and initial model": _digest(prepared, side),
    }


def _digest(prepared: Prepared, side: ClientSide) -> str:
    found = hashlib.blake2b(digest_size=8)
    for tensor in (prepared.federation.start().model, side.data.x, side.data.y, *side.shares):
        found.update(tensor.contiguous().numpy())
    return found.hexdigest()


def work(settings: Distributed) -> NoReturn:
    """Serve rank 0 until it is done; nothing is written, and nothing said. Ends the process.

    Raises:
        RankLost: if not all ranks come.
    """
    with ExitStack() as opened:

        def make(origin: Origin) -> tuple[ClientSide, dict[str, Any]]:
            opened.close()  # the run before
            torch.set_num_threads(1)
            prepared = prepare(dict(origin.config), writes=False)
            federation = prepared.federation
            state = federation.start()
            state.per_sample = origin.per_sample
            federation.settle(state)
            session = federation.session(state, prepared.id)
            opened.callback(session.close)
            side = federation.client_side(session)
            return side, facts(prepared, side)

        serve(member(settings), make)
