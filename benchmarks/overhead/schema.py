"""The JSON schema of a record of overhead (draft 2020-12).

Times are whole nanoseconds, memory is bytes, shares lie between 0 and 1. ``null`` is what couldn't be read: it is never
zero, and never a guess.
"""

from typing import Any

SCHEMA = "privbench overhead record 1"

STRENGTHS = ("proof", "register", "kernel", "provider", "device", "capability")
"""Of signs of protection, strongest first: what each kind rests on. None but the first is proof."""

_TEXT = {"type": "string", "minLength": 1}
_MAYBE_TEXT = {"type": ["string", "null"]}
_COUNT = {"type": "integer", "minimum": 0}
_MAYBE_COUNT = {"type": ["integer", "null"], "minimum": 0}
_MAYBE_BOOLEAN = {"type": ["boolean", "null"]}
_MAYBE_SHARE = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
_MAYBE_NUMBER = {"type": ["number", "null"], "minimum": 0}
_BASE64 = {"type": "string", "contentEncoding": "base64"}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_TIMES = {"type": "array", "items": _COUNT}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _maybe(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


SIGN = _object({"name": _TEXT, "strength": {"enum": STRENGTHS}, "found": _MAYBE_BOOLEAN, "says": _TEXT})

CPU = _object(
    {
        "vendor": _MAYBE_TEXT,
        "model_name": _MAYBE_TEXT,
        "family": _MAYBE_COUNT,
        "model": _MAYBE_COUNT,
        "stepping": _MAYBE_COUNT,
        "microcode": _MAYBE_TEXT,
        "logical": _MAYBE_COUNT,
        "cores": _MAYBE_COUNT,
        "sockets": _MAYBE_COUNT,
        "smt": _MAYBE_BOOLEAN,
        "flags": _list(_TEXT),
        "caches": _list(_object({"level": _COUNT, "type": _TEXT, "bytes": _COUNT, "shared_by": _MAYBE_COUNT})),
        "mitigations": _TEXTS,
        "governor": _MAYBE_TEXT,
        "frequency_driver": _MAYBE_TEXT,
        "boost": _MAYBE_BOOLEAN,
        "max_khz": _MAYBE_COUNT,
    }
)

KERNEL = _object(
    {
        "release": _MAYBE_TEXT,
        "version": _MAYBE_TEXT,
        "command_line": _MAYBE_TEXT,
        "clocksource": _MAYBE_TEXT,
        "swiotlb_bytes": _MAYBE_COUNT,
        "swiotlb_forced": _MAYBE_BOOLEAN,
    }
)

MEMORY = _object(
    {
        "total_bytes": _MAYBE_COUNT,
        "available_bytes": _MAYBE_COUNT,
        "swap_bytes": _MAYBE_COUNT,
        "page_bytes": _COUNT,
        "transparent_huge_pages": _MAYBE_TEXT,
        "transparent_huge_page_defrag": _MAYBE_TEXT,
        "huge_pages": _list(_object({"bytes": _COUNT, "total": _COUNT, "free": _COUNT})),
        "numa": _list(
            _object({"node": _COUNT, "cpus": _TEXT, "bytes": _MAYBE_COUNT, "distances": _list(_COUNT)}),
        ),
    }
)

PLACE = _object(
    {
        "hypervisor": _MAYBE_TEXT,
        "product": _MAYBE_TEXT,
        "container": _MAYBE_TEXT,
        "cpu_limit": _MAYBE_NUMBER,
        "memory_limit_bytes": _MAYBE_COUNT,
        "cpus_allowed": _list(_COUNT),
        "scratch_filesystem": _MAYBE_TEXT,
    }
)

GPU = _object(
    {
        "name": _TEXT,
        "driver": _MAYBE_TEXT,
        "memory_bytes": _MAYBE_COUNT,
        "cpu_capability": _MAYBE_TEXT,
        "gpu_capability": _MAYBE_TEXT,
        "feature": _MAYBE_TEXT,
        "environment": _MAYBE_TEXT,
        "dev_tools": _MAYBE_TEXT,
        "ready": _MAYBE_BOOLEAN,
        "protected_bytes": _MAYBE_COUNT,
    }
)

LOAD = _object(
    {
        "others": _MAYBE_SHARE,
        "steal": _MAYBE_SHARE,
        "loadavg": _maybe({"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3}),
    }
)
"""``others``: share of the machine's processor time that other processes took; ``steal``: that its host kept."""

MEASUREMENT = _object(
    {
        "workload": _TEXT,
        "case": _TEXT,
        "settings": {"type": "object"},
        "ablation": _MAYBE_TEXT,
        "status": {"enum": ["measured", "unavailable"]},
        "reason": _MAYBE_TEXT,
        "work": _object({"amount": {"type": "number", "exclusiveMinimum": 0}, "unit": _TEXT}),
        "calls": {"type": "integer", "minimum": 1},
        "threads": {"type": "integer", "minimum": 1},
        "pinned": _list(_COUNT),
        "warmup": _COUNT,
        "stopped": _MAYBE_TEXT,
        "wall_ns": _TIMES,
        "cpu_ns": _TIMES,
        "start_ns": _TIMES,
        "load": _maybe(LOAD),
        "doubts": _list(_TEXT),
    }
)
"""One case of one workload.

``wall_ns``, ``cpu_ns`` (of this process and its children, of those that still run to 10 ms) and ``start_ns`` (since the
record began) have one entry for each repeat, in the order they were taken, warm-up left out. A repeat makes ``calls``
calls, each of which does ``work``; ``wall_ns[i] / calls`` is a call's time. ``unavailable`` ones have none, and a
``reason``.
"""

EVIDENCE = _object({"platform": _TEXT, "report": _BASE64, "certificates": _list(_BASE64)})
"""What the platform answered. ``platform`` is a name for people: what it is worth follows from the bytes alone."""

RECORD: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    **_object(
        {
            "schema": {"const": SCHEMA},
            "created": {"type": "string", "format": "date-time"},
            "arm": _TEXT,
            "boot": _TEXT,
            "set": _TEXT,
            "stop_rule": _object(
                {
                    "warmup": _COUNT,
                    "repeats": {"type": "integer", "minimum": 1},
                    "seconds": {"type": "number", "exclusiveMinimum": 0},
                }
            ),
            "machine": _object(
                {"cpu": CPU, "kernel": KERNEL, "memory": MEMORY, "place": PLACE, "gpus": _maybe(_list(GPU))}
            ),
            "packages": _TEXTS,
            "signs": _list(SIGN),
            "load": LOAD,
            "measurements": {"type": "array", "items": MEASUREMENT, "minItems": 1},
            "evidence": _maybe(EVIDENCE),
        }
    ),
}
"""A record of one boot under one arm.

``arm`` is the name that whoever took the record gave it (``plain``, ``snp``), their word; ``boot`` is the kernel's boot
id: records of one boot are one cluster. REPORT_DATA of the evidence is the digest of all else. ``swiotlb_forced`` is
what the command line asks for; an encrypted guest bounces without being asked.
"""
