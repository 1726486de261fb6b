"""A record of overhead: how it is written, read and digested. What it holds is in :mod:`~.schema`."""

import hashlib
import json
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import rfc8785
from jsonschema import Draft202012Validator

from privbench.benchmarks.conform import ConfigError
from privbench.benchmarks.overhead.schema import RECORD, SCHEMA

LARGEST = 64 * 2**20
"""Bytes of a record, above which it is refused unread."""

Record = dict[str, Any]


def read(path: Path) -> Record:
    """A record from a file, checked.

    Raises:
        ConfigError: it can't be read, is too large, is no record, or is one of another version.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
        if len(raw) > LARGEST:
            raise ValueError(f"more than {LARGEST} bytes")
        found = json.loads(raw, parse_constant=_constant, object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError("record", str(path), str(getattr(error, "strerror", None) or error)) from None
    check(found, str(path))
    return found


def write(path: Path, record: Record) -> None:
    """Write a record in one atomic step, for its owner and whoever may read the folder.

    Raises:
        ConfigError: it isn't a record.
        OSError: the file can't be written.
    """
    check(record, str(path))
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    os.replace(temporary, path)


def check(record: Any, shown: str) -> None:
    """Raise :class:`ConfigError` naming the first thing in ``record`` that breaks the schema; ``shown`` is its name."""
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        stated = record.get("schema") if isinstance(record, dict) else None
        raise ConfigError("record", shown, f"its schema is {stated!r}, and has to be {SCHEMA!r}")
    errors = sorted(Draft202012Validator(RECORD).iter_errors(record), key=lambda e: list(map(str, e.absolute_path)))
    if errors:
        at = ".".join(map(str, errors[0].absolute_path)) or "the record"
        raise ConfigError("record", shown, f"{at}: {errors[0].message[:200]}")
    if moment(record["created"]) is None:
        raise ConfigError("record", shown, f"created: {record['created'][:60]} is no time with its offset (RFC 3339)")
    seen: set[str] = set()
    for one in record["measurements"]:
        if fault := _fault(one) or (f"{key(one)}: comes twice" if key(one) in seen else None):
            raise ConfigError("record", shown, fault)
        seen.add(key(one))
    try:
        digest(record)
    except (ValueError, TypeError, RecursionError) as error:  # integers beyond 2^53, half a surrogate pair
        raise ConfigError("record", shown, f"it has no canonical form: {error}") from None


def key(measurement: Mapping[str, Any]) -> str:
    """What a measurement is called in a record, once: ``workload/case``, with its ablation if it is one."""
    ablation = measurement["ablation"]
    return f"{measurement['workload']}/{measurement['case']}" + (f" [{ablation}]" if ablation else "")


def moment(text: str) -> datetime | None:
    """The time that ``text`` is, with its offset (RFC 3339); ``None`` if it is none."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else None


def digest(record: Mapping[str, Any]) -> bytes:
    """SHA-512 of the record without its evidence, as canonical JSON (RFC 8785): 64 bytes for REPORT_DATA.

    The schema's name is part of it, so that no other message of the suite has the same digest.
    """
    return hashlib.sha512(rfc8785.dumps({k: v for k, v in record.items() if k != "evidence"})).digest()


def _fault(one: Mapping[str, Any]) -> str | None:
    lengths = {len(one[name]) for name in ("wall_ns", "cpu_ns", "start_ns")}
    if len(lengths) != 1:
        return f"{key(one)}: wall_ns, cpu_ns and start_ns have to be equally long"
    measured = one["status"] == "measured"
    if measured != (lengths != {0}):
        return f"{key(one)}: {one['status']} with {lengths.pop()} repeats"
    if not measured and not one["reason"]:
        return f"{key(one)}: unavailable without a reason"
    return f"{key(one)}: a repeat took no time" if measured and min(one["wall_ns"]) < 1 else None


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two members of one name would be read as one and shown as another."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name comes twice in an object")
    return found
