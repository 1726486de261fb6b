"""A profiled run: the same numbers, spans from every process, and a trace whose events nest and add up."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from privbench.benchmarks.measures.trace import Trace
from privbench.benchmarks.progress import Progress
from privbench.benchmarks.run import run
from privbench.benchmarks.sweep import compose

SMALL = ["task=digits", "task.records=120", "model=mlp", "federation.clients=3", "federation.rounds=2"]


def do(folder: Path, *overrides: str) -> tuple[list[dict[str, Any]], Path]:
    prepared = compose([*SMALL, *overrides, f"results_dir={folder}"])
    outcome = run(prepared, {}, Progress("test"))
    assert outcome.status == "complete", outcome.note
    rows = [json.loads(line) for line in (prepared.path / "metrics.jsonl").read_text().splitlines()]
    return rows, prepared.path


def numbers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [r for r in rows if not r["metric"].endswith(("_seconds", "memory_bytes"))]


def events(path: Path) -> list[dict[str, Any]]:
    return json.loads((path / "artifacts" / "trace.json").read_text())


def check(found: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Events of a process lie within each other or apart, and metrics are sums of what each has of its own."""
    lanes: dict[int, list[dict[str, Any]]] = defaultdict(list)
    own: Counter[tuple[int, str]] = Counter()
    for event in found:
        assert event["ph"] == "X"
        lanes[event["pid"]].append(event)
    for lane in lanes.values():
        open_: list[dict[str, Any]] = []
        for event in sorted(lane, key=lambda e: (e["ts"], -e["dur"])):
            # Sums of floats of microseconds: a nanosecond is none.
            while open_ and open_[-1]["ts"] + open_[-1]["dur"] <= event["ts"] + 1e-3:
                open_.pop()
            if open_:
                assert event["ts"] + event["dur"] <= open_[-1]["ts"] + open_[-1]["dur"] + 1e-3
                own[open_[-1]["args"]["round"], open_[-1]["name"]] -= event["dur"]
            own[event["args"]["round"], event["name"]] += event["dur"]
            open_.append(event)
    told = {(r["round"], r["metric"]): r["value"] for r in rows if r["metric"].startswith("span_")}
    assert len(told) == 2 * len(own)
    for (number, name), duration in own.items():
        assert told[number, f"span_{name}_seconds"] == pytest.approx(duration / 1e6, abs=1e-6)


def test_spans_change_no_number_and_none_leaves_nothing(tmp_path: Path):
    plain, path = do(tmp_path / "a", "federation.workers=1")
    assert not any(r["metric"].startswith("span_") for r in plain)
    assert not (path / "artifacts" / "trace.json").exists()
    profiled, other = do(tmp_path / "b", "federation.workers=1", "profile=spans")
    assert path.name == other.name
    assert numbers(plain) == numbers(profiled)
    assert {"span_local_training_seconds", "span_rule_cpu_seconds"} <= {r["metric"] for r in profiled}
    assert not (other / "artifacts" / "trace.json").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_trace_nests_and_adds_up(tmp_path: Path, workers: int):
    private = ["defense=dp_local", "defense.privacy.epsilon=null", "defense.privacy.noise_multiplier=1"]
    rows, path = do(tmp_path, f"federation.workers={workers}", "profile=trace", *private)
    found = events(path)
    check(found, rows)
    assert {e["args"]["round"] for e in found} == {1, 2}
    assert {e["args"].get("client") for e in found if e["name"] == "per_sample_gradients"} == {0, 1, 2}
    assert len({e["pid"] for e in found}) == (1 if workers == 1 else 3)
    seconds = {(r["round"], r["metric"]): r["value"] for r in rows}
    for number in (1, 2):
        (whole,) = [e for e in found if e["name"] == "round" and e["args"]["round"] == number]
        assert whole["dur"] / 1e6 <= seconds[number, "round_seconds"]
        parts = sum(v for (n, m), v in seconds.items() if n == number and m.startswith("span_") and "_cpu_" in m)
        assert 0 < parts <= seconds[number, "cpu_seconds"] + 1e-3


def test_guests_of_both_sides_are_in_the_trace(tmp_path: Path):
    rows, path = do(tmp_path, "defense=tee_clients", "federation.workers=1", "federation.rounds=1", "profile=trace")
    found = events(path)
    check(found, rows)
    parts: dict[int, set[str]] = defaultdict(set)
    for event in found:
        parts[event["pid"]].add(event["name"])
    coordinator, worker, guest, aggregator = (
        next(names for names in parts.values() if key in names) for key in ("round", "client", "guest", "aggregator")
    )
    assert {"distribution", "waiting"} <= coordinator
    assert "encryption" in worker
    assert {"attestation", "local_training", "encryption"} <= guest
    assert {"attestation", "encryption", "waiting", "rule", "release", "server_step", "receipts"} <= aggregator
    assert len(parts) == 4


def test_a_resumed_trace_goes_on_after_what_it_has(tmp_path: Path):
    from privbench.benchmarks.federation.spans import Span

    def made(name: str, start: int) -> list[Span]:
        return [Span(name, 5, -1, 0, start, 2000, 1000, 2000, 1000)]

    path = tmp_path / "trace.json"
    first = Trace(path, 0)
    assert json.loads(path.read_text()) == []
    first.add(1, made("a", 10**12))
    first.add(2, made("lost", 10**12 + 5000))
    resumed = Trace(path, 1)
    resumed.add(2, [])
    resumed.add(2, made("b", 77))
    assert [(e["name"], e["args"]["round"], e["ts"], e["dur"]) for e in json.loads(path.read_text())] == [
        ("a", 1, 0.0, 2.0),
        ("b", 2, 2.0, 2.0),
    ]
