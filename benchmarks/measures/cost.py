"""What a round took, as metrics: seconds, CPU seconds, memory and bytes, by round and client."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from privbench.benchmarks.federation.loop import Round
from privbench.benchmarks.federation.usage import Usage

BY_CLIENT: Mapping[str, Callable[[Usage], float | None]] = {
    "client_seconds": lambda usage: round(usage.seconds, 6),
    "client_cpu_seconds": lambda usage: round(usage.cpu_seconds, 6),
    "client_memory_bytes": lambda usage: usage.memory,
    "update_bytes": lambda usage: usage.sent,
    "received_bytes": lambda usage: usage.received,
}
"""Metrics of each client who sent anything, of all its turns in a round; the largest of memory, sums of the others."""


def rows(finished: Round, counted: bool = True) -> Iterator[dict[str, Any]]:
    """The metrics of one round.

    Without ``counted``, processes of others ran clients, and there are no CPU seconds and no memory of the whole round.
    A metric of clients is one row: the mean over them is its ``value``, and ``by_client`` has each one's, in the order
    of ``clients``.
    """
    usage, number = finished.usage, finished.round
    for name, seconds in usage.seconds.items():
        yield {"metric": f"{name}_seconds", "round": number, "value": seconds}
    yield from _parts(finished)
    if counted:
        yield {"metric": "cpu_seconds", "round": number, "value": usage.cpu_seconds}
    if counted and usage.memory is not None:
        yield {"metric": "peak_memory_bytes", "round": number, "value": usage.memory}
    if not usage.clients:
        # Nobody was drawn, or the round had been released before the run was cut off: only its view is kept.
        sizes = finished.views["network"].rounds[-1].sizes
        yield {"metric": "update_bytes", "round": number, "value": sum(sizes.values()) / max(1, len(sizes))}
        return
    for name, of in BY_CLIENT.items():
        values = [of(one) for one in usage.clients.values()]
        known = [v for v in values if v is not None]
        if len(known) == len(values):
            mean = sum(known) / len(known)
            yield {
                "metric": name,
                "round": number,
                "value": mean,
                "clients": [*usage.clients],
                "by_client": known,
            }


def _parts(finished: Round) -> Iterator[dict[str, Any]]:
    """What each part took, of all processes, without the parts that lie in it; nothing where it isn't recorded."""
    wall: Counter[str] = Counter()
    cpu: Counter[str] = Counter()
    for span in finished.usage.spans:
        wall[span.name] += span.own_wall
        cpu[span.name] += span.own_cpu
    for name in sorted(wall):
        yield {"metric": f"span_{name}_seconds", "round": finished.round, "value": wall[name] / 1e9}
        yield {"metric": f"span_{name}_cpu_seconds", "round": finished.round, "value": cpu[name] / 1e9}
