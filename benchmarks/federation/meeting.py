"""Ranks of a launch find each other."""

import json
import os
import socket
import time
import uuid
from datetime import timedelta

import torch.distributed as dist

from privbench.benchmarks.federation.launch import Launch

POLL = 0.05
CALL = "privbench/call"


class RankLost(RuntimeError):
    """A rank is gone: killed, out of memory, or cut off; or it never came."""


def meet(launch: Launch, timeout: float, patience: float) -> list[str]:
    """Make the default process group, over gloo.

    Rank 0 calls, the others answer, and it says who is in. torchrun keeps one store for all its restarts, so each
    start has a name of its own, and nobody takes what an earlier one has left for an answer.

    Args:
        timeout: seconds after which a wait for another rank breaks the group.
        patience: seconds in which all have to come.

    Returns:
        Each rank's host.

    Raises:
        RankLost: naming who hasn't come.
    """
    try:
        store = _store(launch, patience)
        hosts, call = (_call if launch.rank == 0 else _answer)(store, launch, time.monotonic() + patience)
    except dist.DistError as error:
        reason = str(error).splitlines()[0]
        where = f"{launch.address}:{launch.port}"
        raise RankLost(f"{_absent([0])} at {where} in {patience:g} s (federation.engine.meeting): {reason}") from None
    except _Missing as missing:
        late = f"{_absent(missing.ranks)} in {patience:g} s (federation.engine.meeting)"
        raise RankLost(f"of {launch.world} ranks, {late}") from None
    limit = timedelta(seconds=timeout)
    group = dist.PrefixStore(call, store)
    dist.init_process_group("gloo", store=group, rank=launch.rank, world_size=launch.world, timeout=limit)
    return hosts


class _Missing(Exception):
    def __init__(self, ranks: list[int]):
        self.ranks = ranks


def _absent(ranks: list[int]) -> str:
    named = ", ".join(map(str, ranks))
    return f"rank {named} hasn't come" if len(ranks) == 1 else f"ranks {named} haven't come"


def _store(launch: Launch, patience: float) -> dist.Store:
    # Rank 0 has the store, unless torchrun's agent has it already.
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    limit = timedelta(seconds=patience)
    serves = launch.rank == 0 and not agent
    return dist.TCPStore(
        launch.address, launch.port, launch.world, serves, timeout=limit, wait_for_workers=False, multi_tenant=True
    )


def _call(store: dist.Store, launch: Launch, until: float) -> tuple[list[str], str]:
    call = uuid.uuid4().hex
    store.set(CALL, call)
    keys = {rank: f"{call}/{rank}" for rank in range(1, launch.world)}
    while missing := [rank for rank, key in keys.items() if not store.check([key])]:
        if time.monotonic() > until:
            raise _Missing(missing)
        time.sleep(POLL)
    here = [[call, socket.gethostname()], *(json.loads(store.get(key)) for key in keys.values())]
    store.set(f"{call}/here", json.dumps(here))
    return [host for _, host in here], call


def _answer(store: dist.Store, launch: Launch, until: float) -> tuple[list[str], str]:
    own = uuid.uuid4().hex
    answered = None
    while time.monotonic() < until:
        if store.check([CALL]):
            call = store.get(CALL).decode()
            if call != answered:
                store.set(f"{call}/{launch.rank}", json.dumps([own, socket.gethostname()]))
                answered = call
            here = json.loads(store.get(f"{call}/here")) if store.check([f"{call}/here"]) else []
            if here and here[launch.rank][0] == own:
                return [host for _, host in here], call
        time.sleep(POLL)
    raise _Missing([0])
