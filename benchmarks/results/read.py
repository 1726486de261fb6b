"""Reading a run directory: every file is checked, and an error names the file and the line."""

import json
from datetime import datetime
from math import inf
from pathlib import Path
from typing import Any

from privbench.benchmarks.results.runs import Metric, Run, Statement

SCHEMA = 1
STATUSES = ("running", "complete", "failed", "diverged")
REQUIRED: dict[str, type | tuple[type, ...]] = {
    "schema": int,
    "id": str,
    "settings": dict,
    "config": dict,
    "seed": int,
    "choices": dict,
    "revision": (dict, type(None)),
    "assurance": str,
    "privacy": (list, type(None)),
    "status": str,
}


class MalformedError(ValueError):
    """A file of the results isn't what the format says; the message starts with ``file:line``."""

    def __init__(self, path: Path, line: int, problem: str):
        super().__init__(f"{path}:{line}: {problem}")
        self.path, self.line, self.problem = path, line, problem


def read_run(path: Path) -> Run:
    """Read a run directory.

    Raises:
        FileNotFoundError: without a ``manifest.json``.
        MalformedError: naming the file and the line that break the format.
    """
    manifest = read_manifest(path / "manifest.json")
    metrics = read_metrics(path / "metrics.jsonl", running=manifest["status"] == "running")
    statements = tuple(_statement(s, path / "manifest.json") for s in manifest["privacy"] or ())
    return Run(path, {**manifest, "shown_assurance": _shown(path, manifest)}, metrics, statements)


def _shown(path: Path, manifest: dict[str, Any]) -> str:
    """What the evidence in a run's folder shows, whatever its manifest claims; ``none`` without evidence."""
    folder = path / "artifacts" / "attestation"
    if manifest["status"] != "complete" or not folder.is_dir():
        return "none"
    # Cryptography is loaded for runs that need it.
    from privbench.defenses.tee.protocol.audit import assurance

    try:
        # Certificates had to be valid when the run ended; software platforms' live for days.
        finished = datetime.fromisoformat(manifest["finished"])
    except (KeyError, TypeError, ValueError):
        return "none"
    return assurance(folder, finished) if finished.tzinfo else "none"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of schema :data:`SCHEMA`.

    Raises:
        MalformedError: if it is something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise MalformedError(path, 1, f"not UTF-8 ({error.reason})") from None
    except json.JSONDecodeError as error:
        raise MalformedError(path, error.lineno, f"not JSON ({error.msg})") from None
    if not isinstance(found, dict):
        raise MalformedError(path, 1, f"expected an object, got {type(found).__name__}")
    if found.get("schema") != SCHEMA:
        raise MalformedError(path, 1, f"schema {found.get('schema')!r}: this version reads schema {SCHEMA}")
    return found


def read_manifest(path: Path) -> dict[str, Any]:
    """``manifest.json`` with the fields that reading needs checked."""
    manifest = read_json(path)
    for key, kind in REQUIRED.items():
        if key not in manifest:
            raise MalformedError(path, 1, f"{key!r} is missing")
        if not isinstance(manifest[key], kind) or isinstance(manifest[key], bool):
            raise MalformedError(path, 1, f"{key!r} is a {type(manifest[key]).__name__}")
    if manifest["status"] not in STATUSES:
        raise MalformedError(path, 1, f"status {manifest['status']!r}: expected one of {', '.join(STATUSES)}")
    revision = manifest["revision"]
    if revision is not None and not isinstance(revision.get("commit") or revision.get("version"), str):
        raise MalformedError(path, 1, "'revision' has neither 'commit' nor 'version'")
    return manifest


def _statement(found: Any, path: Path) -> Statement:
    if not isinstance(found, dict) or not isinstance(found.get("unit"), str) or "epsilon" not in found:
        raise MalformedError(path, 1, "'privacy': a statement needs 'unit', 'adversary' and 'epsilon'")
    epsilon, delta, adversary = found["epsilon"], found.get("delta"), found.get("adversary")
    if not isinstance(adversary, str):
        raise MalformedError(path, 1, f"'privacy': adversary {adversary!r} is not a name")
    if epsilon is not None and not (isinstance(epsilon, int | float) and epsilon >= 0):
        raise MalformedError(path, 1, f"'privacy': epsilon {epsilon!r} is neither null nor a number from 0")
    value, simulated = inf if epsilon is None else epsilon, bool(found.get("simulated"))
    return Statement(found["unit"], adversary, value, delta, simulated, found.get("adjacency"))


def read_metrics(path: Path, running: bool) -> tuple[Metric, ...]:
    """``metrics.jsonl``. A run that is killed while it writes leaves half a line: only a ``running`` one may.

    Raises:
        MalformedError: naming the line.
    """
    if not path.exists():
        return ()
    metrics = []
    lines = path.read_bytes().removesuffix(b"\n").split(b"\n") if path.stat().st_size else []
    for number, line in enumerate(lines, start=1):
        try:
            found = json.loads(line)
        except ValueError as error:
            if running and number == len(lines):
                break
            raise MalformedError(path, number, f"not JSON ({error})") from None
        metrics.append(_metric(found, path, number))
    return tuple(metrics)


def _metric(found: Any, path: Path, number: int) -> Metric:
    if not isinstance(found, dict) or not isinstance(found.get("metric"), str) or "value" not in found:
        raise MalformedError(path, number, "expected an object with 'metric' and 'value'")
    value = found["value"]
    if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
        raise MalformedError(path, number, f"value {value!r} is neither a number nor null")
    for key, kind in (("round", int), ("client", int), ("adversary", str), ("status", str)):
        if found.get(key) is not None and not isinstance(found[key], kind):
            raise MalformedError(path, number, f"{key} {found[key]!r} is no {kind.__name__}")
    known = ("round", "client", "adversary", "status", "reason", "unit")
    more = {k: v for k, v in found.items() if k not in (*known, "metric", "value")}
    value = None if value is None else float(value)
    return Metric(found["metric"], value, **{k: found.get(k) for k in known}, more=more)
