"""A run's spans as a Chrome trace, for ``chrome://tracing``, Perfetto and the like."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from privbench.benchmarks.federation.spans import Span

_END = "\n]\n"


class Trace:
    """``trace.json``: a JSON array of complete events, one a line, in microseconds; it is whole after every round.

    Args:
        path: of the file.
        round: the last that a resumed run goes on from; its later ones are dropped.
    """

    def __init__(self, path: Path, round: int):
        self._path = path
        kept = [e for e in json.loads(path.read_text()) if e["args"]["round"] <= round] if path.exists() else []
        # Clocks start anew with the machine: a resumed run's events come after those that are there.
        self._offset = max((e["ts"] + e["dur"] for e in kept), default=0.0)
        self._origin: int | None = None
        self._empty = not kept
        path.write_text("[" + ",".join(f"\n{json.dumps(e)}" for e in kept) + _END)

    def add(self, round: int, spans: Iterable[Span]) -> None:
        """The spans of one round."""
        found = sorted(spans, key=lambda s: (s.start, s.depth))
        if not found:
            return
        if self._origin is None:
            self._origin = found[0].start
        lines = [json.dumps(self._event(round, span)) for span in found]
        with open(self._path, "r+b") as file:
            file.seek(-len(_END), 2)
            file.write((("\n" if self._empty else ",\n") + ",\n".join(lines) + _END).encode())
        self._empty = False

    def _event(self, round: int, span: Span) -> dict[str, Any]:
        assert self._origin is not None
        args = {"round": round, "cpu_us": span.cpu / 1e3} | ({"client": span.client} if span.client >= 0 else {})
        return {
            "name": span.name,
            "ph": "X",
            "ts": self._offset + (span.start - self._origin) / 1e3,
            "dur": span.wall / 1e3,
            "pid": span.process,
            "tid": span.process,
            "args": args,
        }
