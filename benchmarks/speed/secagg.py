"""What secure aggregation costs a client and the server in one round, beside the plaintext channel and Flower.

    python -m privbench.benchmarks.speed.secagg [--clients 20] [--sizes 100000 1000000] [--repeats 5]

Updates are made beforehand: what is timed is the channel, with the pickling of what leaves a client. Where Flower can
be imported, the stages of its SecAgg+ with all clients as neighbours do the same work (16 bits a coordinate, sums
modulo 2^32). Everybody's mean is compared with the true one before its time is believed.
"""

import argparse
import importlib.util
import os
import pickle
import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from privbench.benchmarks.federation.server import Pipeline, RoundContext, ServerSGD, ServerState
from privbench.benchmarks.federation.update import Layout, Update
from privbench.benchmarks.federation.usage import cpu_seconds, processes
from privbench.defenses.accounting.plan import Facts
from privbench.defenses.aggregation import Mean
from privbench.defenses.aggregation.rule import Rule
from privbench.defenses.channel import Channel, Message, Plaintext, SecAgg, Setup
from privbench.defenses.release import Unchanged


@dataclass(frozen=True)
class Cost:
    """Of one round.

    Args:
        clients: number of.
        client: seconds of one client, over all phases.
        server: seconds of the server.
        sent, received: bytes of one client, without the model.
        mean: what came out, ``(d,)``.
    """

    clients: int
    client: float
    server: float
    sent: float
    received: float
    mean: Tensor

    @property
    def every(self) -> float:
        """Seconds of all clients and the server, one after another."""
        return self.clients * self.client + self.server


@dataclass
class Work:
    """A cohort's updates.

    Args:
        clients: number of.
        size: d.
        lost: how many share their keys and send no update, the last ones.
    """

    clients: int
    size: int
    lost: int = 0
    layout: Layout = field(init=False)
    updates: list[Update] = field(init=False)

    def __post_init__(self) -> None:
        self.layout = Layout(("w",), ((self.size,),), 1)
        drawn = torch.Generator().manual_seed(0)
        vectors = (torch.randn(self.size, generator=drawn) * 0.02 for _ in range(self.clients))
        self.updates = [Update(v, self.layout, "update", 100 + n) for n, v in enumerate(vectors)]

    @property
    def left(self) -> list[Update]:
        """Of those who don't drop out."""
        return self.updates[: self.clients - self.lost]

    def mean(self) -> Tensor:
        total = sum((u.vector.double() * u.records for u in self.left), torch.zeros(self.size, dtype=torch.float64))
        return total / sum(u.records for u in self.left)

    def close(self, found: Tensor) -> bool:
        """Whether a mean is the true one, up to what rounding to 16 bits makes of it where errors add up."""
        return float((found.double() - self.mean()).abs().max()) < 2.0**-11


@dataclass(frozen=True)
class _Ready:
    """A client's turn that is done already."""

    made: Update

    def update(self, received: Tensor) -> Update:
        return self.made


def ours(channel: Channel, work: Work, rule: Rule | None = None, cpu: bool = False) -> Cost:
    """One round of a channel of this package.

    Args:
        rule: the mean, if ``None``.
        cpu: count CPU seconds of this process and all that the channel started, not the clock's seconds.
    """
    model, clients = torch.zeros(work.size), range(work.clients)
    facts = Facts(
        clients=work.clients,
        rounds=1,
        participation=1.0,
        sampling="fixed",
        records=tuple(u.records for u in work.updates),
        batch=(1,) * work.clients,
        steps=(1,) * work.clients,
        operator_reads_updates=channel.plaintext,
    )
    pipeline = Pipeline(rule or Mean(), Unchanged(), ServerSGD())
    setup = Setup("speed", 0, model, work.layout, pipeline, None, facts, "records", "update", 0.1, "")
    state = ServerState(0, model)
    context = RoundContext(0, 1, tuple(clients), len(clients), "records", work.layout, "update", 0.1, None, frozenset())
    session = channel.start(setup, state)
    everybody = processes()
    now = (lambda: sum(map(cpu_seconds, everybody))) if cpu else time.perf_counter
    inboxes: dict[int, Any] = dict.fromkeys(clients, 1)
    kept: dict[int, dict[str, Any]] = {c: {} for c in clients}
    spent: defaultdict[str, float] = defaultdict(float)

    def turn(client: int, phase: str) -> Message:
        begin = now()
        done: Any = _Ready(work.updates[client]) if phase == session.trains else None
        message = session.client(phase, done, client, model, inboxes[client], kept[client])
        kept[client] = message.state
        carried = pickle.dumps(message.payload, protocol=5)
        spent["client"] += now() - begin
        message.payload = pickle.loads(carried)
        return message

    for phase in session.phases[:-1]:
        messages = [turn(c, phase) for c in inboxes]
        begin = now()
        inboxes = dict(session.relay(phase, messages, state))
        spent["server"] += now() - begin
        if phase == "share":
            inboxes = {c: inbox for c, inbox in inboxes.items() if c < work.clients - work.lost}
    messages = [turn(c, session.phases[-1]) for c in inboxes]
    begin = now()
    released, views = session.server(messages, pipeline, state, context)
    spent["server"] += now() - begin
    session.close(over=True)
    sizes = list(views["network"].sizes.values())
    received = released.costs.get("channel_received_bytes", 0.0)
    each = spent["client"] / work.clients
    return Cost(work.clients, each, spent["server"], statistics.mean(sizes), received, released.model)


def contenders() -> dict[str, Callable[[Work], Cost]]:
    """By name; Flower where it is."""
    found: dict[str, Callable[[Work], Cost]] = {
        "plaintext": lambda work: ours(Plaintext(), work),
        "secagg": lambda work: ours(SecAgg(), work),
    }
    if importlib.util.find_spec("flwr"):
        from privbench.benchmarks.speed.peers_secagg import flower

        found["flower"] = flower
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--lost", type=int, nargs="+", default=[0, 2], help="clients that drop out after sharing keys")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.clients < 3 or max(options.lost) > options.clients // 4 or options.repeats < 1:
        parser.error("at least 3 clients, of whom at most a quarter drops out, and 1 repeat")
    torch.set_num_threads(1)
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores, one thread,")
    print(f"{options.clients} clients, median of {options.repeats} rounds in turns\n")
    print("x: over plaintext without drop-outs; all: every client and the server, one after another\n")
    head = "| d | dropped | | client (s) | server (s) | x | all (s) | x | sent (bytes) | x | received (bytes) |"
    print(f"{head}\n|{'---|' * 11}")
    for size in options.sizes:
        base: list[float] = []
        for lost in options.lost:
            base = _table(Work(options.clients, size, lost), options.repeats, base)


def _table(work: Work, repeats: int, base: list[float]) -> list[float]:
    """Print one cohort's rows; what they are compared with is in ``base``, or else plaintext's in this one."""
    costs: dict[str, list[Cost]] = defaultdict(list)
    for _ in range(repeats):
        # They take turns, and so share whatever else the machine does.
        for name, contender in contenders().items():
            if name == "plaintext" and base:
                continue
            cost = contender(work)
            if not work.close(cost.mean):
                sys.exit(f"{name} gives another mean: its time means nothing")
            costs[name].append(cost)
    for name, found in costs.items():
        client, server, every, sent, received = (
            statistics.median(getattr(c, f) for c in found) for f in ("client", "server", "every", "sent", "received")
        )
        base = base or [server, every, sent]
        x = [f"{a / b:.2f}" for a, b in zip((server, every, sent), base, strict=True)]
        seconds = f"{client:.4f} | {server:.4f} | {x[0]} | {every:.3f} | {x[1]}"
        print(f"| {work.size} | {work.lost} | {name} | {seconds} | {sent:.0f} | {x[2]} | {received:.0f} |")
    return base


if __name__ == "__main__":
    main()
