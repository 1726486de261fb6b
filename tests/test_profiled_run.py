"""A profiled run: the same numbers, parts of every process, and a trace."""

import json
from pathlib import Path
from typing import Any

import pytest

from privbench.benchmarks.progress import Progress
from privbench.benchmarks.run import run
from privbench.benchmarks.sweep import compose

SMALL = ["task=digits", "task.records=200", "model=mlp", "federation.clients=4", "federation.rounds=2"]


def do(folder: Path, *overrides: str) -> tuple[Path, list[dict[str, Any]]]:
    prepared = compose([*SMALL, *overrides, f"results_dir={folder}"])
    assert run(prepared, {}, Progress("test")).status == "complete"
    return prepared.path, [json.loads(x) for x in (prepared.path / "metrics.jsonl").read_text().splitlines()]


def last(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {row["metric"]: row["value"] for row in rows if row["round"] == 2}


def costless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    named = ("seconds", "_peak_bytes")
    return [r for r in rows if not r["metric"].endswith(named) and not r["metric"].startswith("share_")]


def test_a_profile_changes_no_number_and_no_name(tmp_path: Path):
    plain, before = do(tmp_path / "plain", "defense=dp_local_clip_only", "federation.workers=1")
    traced, after = do(tmp_path / "traced", "defense=dp_local_clip_only", "federation.workers=1", "profile=trace")
    assert plain.name == traced.name
    assert costless(before) == costless(after)
    assert not any(row["metric"].startswith(("span_", "share_")) for row in before)
    assert not (plain / "artifacts" / "trace.json").exists()
    found = last(after)
    assert found["share_per_sample"] > 0
    assert sum(v for k, v in found.items() if k.startswith("share_")) == pytest.approx(1)
    # Clients in the coordinating process: its clock and theirs make up the whole.
    assert found["cpu_seconds"] == pytest.approx(found["coordinator_cpu_seconds"] + found["workers_cpu_seconds"])
    assert 0 < found["coordinator_cpu_seconds"] < found["workers_cpu_seconds"]
    # Float32, both ways, and nothing else.
    assert found["uplink_bytes"] == found["downlink_bytes"] == found["update_bytes"]


def test_an_attested_run_has_the_parts_and_bytes_of_all_its_processes(tmp_path: Path):
    path, rows = do(tmp_path, "defense=tee_clients", "federation.workers=1", "profile=trace")
    found = last(rows)
    for part in ("training", "attestation", "encryption", "receipts", "rule"):
        assert found[f"share_{part}"] > 0, part
    roles = ("coordinator", "workers", "aggregator", "guests")
    assert found["cpu_seconds"] == pytest.approx(sum(found[f"{role}_cpu_seconds"] for role in roles))
    # The nonce of the first phase, and an opening beside the model.
    assert found["uplink_bytes"] == found["update_bytes"] + 32
    assert found["downlink_bytes"] > found["channel_downlink_bytes"] + 1184
    events = json.loads((path / "artifacts" / "trace.json").read_text())["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    where = {(names[e["pid"]], e["name"]) for e in events if e["ph"] == "X"}
    assert {("guest", "training"), ("aggregator", "receipts"), ("coordinator", "round"), ("worker", "client")} <= where
    assert min(e["ts"] for e in events if e["ph"] == "X") == 0


def test_masks_are_the_encryption_of_secure_aggregation(tmp_path: Path):
    _, rows = do(tmp_path, "defense=secagg", "federation.workers=2", "profile=spans")
    found = last(rows)
    assert found["share_encryption"] > 0.01
    assert found["uplink_bytes"] == found["update_bytes"]
    # Public keys of four, three sealed shares of 80 bytes, and a bit for each of four.
    assert found["downlink_bytes"] == 4 * (found["channel_received_bytes"] // 4) + 1 + 4 * 4810
    assert found["workers_peak_bytes"] > 0
