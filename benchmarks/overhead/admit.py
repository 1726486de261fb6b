"""Which records may stand in one comparison: those that differ in the protection alone.

It fails closed: every field of the machine, every package, every setting and every workload has to be the same in all
records, but for what is listed here. A difference is refused by name, or allowed by name and then noted.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from privbench.benchmarks.conform import ConfigError
from privbench.benchmarks.overhead.record import Record, key

VOLATILE = frozenset(
    {
        "machine.memory.available_bytes",  # of the moment
        "machine.kernel.swiotlb_bytes",  # bounce buffers come with the protection
        "machine.kernel.swiotlb_forced",
    }
)
"""Never compared."""

FOLLOWS = frozenset({"machine.kernel.clocksource", "machine.memory.total_bytes", "machine.memory.numa"})
"""A guest's protection can change these by itself: a difference between arms is noted."""

COMPUTING = ("sse", "ssse", "avx", "fma", "f16c", "bmi", "aes", "vaes", "sha", "pclmul", "vpclmul", "amx", "adx", "gf")
"""Processor flags that decide how fast code computes; others come and go with the protection."""

MEMORY_SLACK = 0.1
"""Relative difference of memory within which a protected guest may have less: its bounce buffers."""

_OF_WORK = ("settings", "work", "calls", "threads", "pinned", "ablation", "warmup")


class Incomparable(ValueError):
    """Records that can't be compared; ``faults`` says what differs, a line for each field."""

    def __init__(self, faults: Sequence[str]):
        super().__init__(faults)
        self.faults = tuple(faults)

    def __str__(self) -> str:
        return "these records can't be compared:\n  " + "\n  ".join(self.faults)


def admit(arms: Mapping[str, Sequence[Record]], allow: Iterable[str] = ()) -> list[str]:
    """What differs and is allowed, a note for each; the first arm is the base.

    Args:
        arms: records by arm, each with one record or more.
        allow: fields whose difference is accepted: ``machine.kernel.release``, or ``packages`` for all below it.

    Raises:
        Incomparable: anything else differs.
        ConfigError: ``allow`` names nothing that is compared.
    """
    allowed = tuple(allow)
    faults, notes = [], []
    found = {name: [facts(record) for record in records] for name, records in arms.items()}
    names = sorted({field for one in found.values() for each in one for field in each})
    unknown = [a for a in allowed if not any(_under(n, a) for n in names)]
    if unknown:
        raise ConfigError("allow", unknown[0], "a field of these records, such as machine.kernel.release")
    for field in names:
        # Of a workload that some records lack, that is said once, not of each of its settings.
        some = {a: [e for e in one if field in e or not field.startswith("workloads.")] for a, one in found.items()}
        values = {arm: _distinct([each.get(field, _ABSENT) for each in one]) for arm, one in some.items() if one}
        if len({json.dumps(v, sort_keys=True) for some in values.values() for v in some}) == 1:
            continue
        said = f"{field}: {_said(values)}"
        if any(_under(field, a) for a in allowed):
            notes.append(f"allowed to differ: {said}")
        elif field in FOLLOWS and (field == "machine.kernel.clocksource" or _close(values)):
            notes.append(f"may differ with the protection: {field}, {_extent(values)}")
        else:
            faults.append(said)
    if faults:
        raise Incomparable(faults)
    return notes


def facts(record: Record) -> dict[str, Any]:
    """What has to be the same, by dotted name."""
    found = dict(_flat("machine", record["machine"]))
    found |= {f"packages.{name}": version for name, version in record["packages"].items()}
    found |= _flat("stop_rule", record["stop_rule"])
    found["set"] = record["set"]
    flags = record["machine"]["cpu"]["flags"]
    found["machine.cpu.flags"] = sorted(f for f in flags if f.startswith(COMPUTING))
    words = (record["machine"]["kernel"]["command_line"] or "").split()
    found["machine.kernel.command_line"] = " ".join(w for w in words if not w.startswith("swiotlb="))
    pages = record["machine"]["memory"]["huge_pages"]
    found["machine.memory.huge_pages"] = [{"bytes": p["bytes"], "total": p["total"]} for p in pages]
    gpus = record["machine"]["gpus"]
    found["machine.gpus"] = gpus and [{"name": g["name"], "driver": g["driver"]} for g in gpus]
    for one in record["measurements"]:
        found[f"measured.{key(one)}"] = "taken"
        found |= {f"workloads.{key(one)}.{part}": one[part] for part in _OF_WORK}
    return {field: value for field, value in found.items() if field not in VOLATILE}


_ABSENT = "absent"


def _flat(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield name, value
        return
    for part, inner in value.items():
        yield from _flat(f"{name}.{part}", inner)


def _distinct(values: Sequence[Any]) -> list[Any]:
    """Each value once, in order."""
    return [v for n, v in enumerate(values) if v not in values[:n]]


def _under(field: str, allowed: str) -> bool:
    return field == allowed or field.startswith(f"{allowed}.")


def _said(values: Mapping[str, Sequence[Any]]) -> str:
    """``plain has 6.8, sev_snp has 6.11``; arms that agree are named together."""
    groups: dict[str, list[str]] = {}
    for arm, some in values.items():
        groups.setdefault(" and ".join(_short(v) for v in some), []).append(arm)
    return "; ".join(f"{', '.join(named)} {'has' if len(named) == 1 else 'have'} {v}" for v, named in groups.items())


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"


def _extent(values: Mapping[str, Sequence[Any]]) -> str:
    """How far values of :data:`FOLLOWS` differ."""
    shown = {_short(v) for some in values.values() for v in some}
    amounts = [_amount(v) for some in values.values() for v in some if not isinstance(v, str)]
    return f"by up to {max(amounts) / min(amounts) - 1:.1%}" if amounts else ", ".join(sorted(shown))


def _amount(value: Any) -> int:
    """Bytes of memory, or of all nodes."""
    return sum(node["bytes"] or 0 for node in value) if isinstance(value, list) else value or 0


def _close(values: Mapping[str, Sequence[Any]]) -> bool:
    """Whether amounts of memory differ by no more than bounce buffers explain; the same nodes in any case."""
    every = [v for some in values.values() for v in some]
    amounts = [_amount(v) for v in every]
    lists = [v for v in every if isinstance(v, list)]
    shapes = {json.dumps([{k: v for k, v in node.items() if k != "bytes"} for node in one]) for one in lists}
    return len(shapes) <= 1 and min(amounts) > 0 and max(amounts) / min(amounts) <= 1 + MEMORY_SLACK
