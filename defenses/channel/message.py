"""What a client hands to a channel."""

from dataclasses import dataclass, field
from typing import Any

from privbench.benchmarks.federation.spans import Span
from privbench.benchmarks.federation.usage import Usage


@dataclass
class Message:
    """What a client hands to the channel in one phase. Engines carry it and never look inside.

    Args:
        client: who sends it.
        payload: opaque.
        size: bytes on the wire.
        seconds: the client's time from invitation to message.
        state: what the client itself keeps for its next phase or round, never sent.
        costs: what the channel took of the client, by metric name.
        received: bytes that the client had received for this phase, the model among them where it trains.
        usage: CPU seconds and memory that the phase took; of a channel, what it took in other processes.
        process: that ran it, and its largest resident set in the round so far, bytes.
        spans: of that process, and of those that it asked.
    """

    client: int
    payload: Any
    size: int
    seconds: float = 0.0
    state: dict[str, Any] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    received: int = 0
    usage: Usage = field(default_factory=Usage)
    process: tuple[int, int] = (0, 0)
    spans: tuple[Span, ...] = ()
