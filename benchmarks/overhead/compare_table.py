"""A comparison as tables: what was measured, and, apart from it, what others published."""

import re
from typing import Any

from privbench.benchmarks.overhead.compare import Comparison, Row
from privbench.benchmarks.overhead.published import PUBLISHED
from privbench.benchmarks.overhead.ratio import Ratio
from privbench.benchmarks.results.tabular import Table

UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns"))


def measured(comparison: Comparison) -> Table | None:
    """One row a workload and arm: times of one call, the ratio with its interval, the null's, and a verdict.

    Where the null alone was compared, its ratio stands once. Nothing emulated is in it; ``None`` if nothing else was
    compared.
    """
    return _table(comparison, [row for row in comparison.rows if not row.emulated], ())


def emulated(comparison: Comparison) -> Table | None:
    """The same of workloads that a TEE emulated in software is part of; ``None`` without any."""
    note = "SOFTWARE TEE: what an emulated TEE's protocol takes under each arm. No figure of confidential hardware."
    return _table(comparison, [row for row in comparison.rows if row.emulated], (note,))


def _table(comparison: Comparison, compared: list[Row], first: tuple[str, ...]) -> Table | None:
    if not compared:
        return None
    beside = any({comparison.base, row.arm} != {*(comparison.pair or ())} for row in compared)
    rows = []
    for row in compared:
        one = row.ratio
        cells = (row.workload, row.arm, f"{one.boots[0]}+{one.boots[1]}", duration(one.base), duration(one.other))
        ratios = (shown(one), shown(row.null)) if beside else (shown(one),)
        rows.append((*cells, *ratios, row.verdict + ("*" if row.doubts else "")))
    of = f"Ratios are arm/{comparison.base}, above 1 is slower; n is the number of {comparison.cluster}s of each."
    return Table(
        ("workload", "arm", "n", comparison.base, "arm's", "ratio", *(("null ratio",) if beside else ()), "verdict"),
        tuple(rows),
        (*first, f"{of} Brackets are {comparison.level:.0%} intervals.", *comparison.notes, *_doubts(compared)),
        tuple(_record(comparison, row) for row in compared),
    )


def literature() -> Table:
    """What others published, in their own terms and as ranges of ratios. No measurement of this suite is in it."""
    rows = tuple((r.source, r.setting, "—", _range(r.low, r.high), r.says) for r in PUBLISHED)
    records = tuple(
        {"source": r.source, "setting": r.setting, "low": r.low, "high": r.high, "says": r.says} for r in PUBLISHED
    )
    notes = ("FROM THE LITERATURE: none of it was measured here, on this machine or by this suite.",)
    return Table(("source", "setting", "n", "published ratio", "in its own terms"), rows, notes, records)


def projection(comparison: Comparison) -> Table | None:
    """Times of the base, stretched by published ranges of the same kind of work; ``None`` where none fits."""
    rows, records = [], []
    for workload, base in dict.fromkeys((row.workload, row.ratio.base) for row in comparison.rows if not row.emulated):
        for one in PUBLISHED:
            if one.fits(workload) and one.low is not None and one.high is not None:
                low, high = base * one.low, base * one.high
                span = duration(low) if low == high else f"{duration(low)} to {duration(high)}"
                rows.append((workload, one.source, "—", one.setting, _range(one.low, one.high), span))
                records.append(
                    {
                        "workload": workload,
                        "source": one.source,
                        "setting": one.setting,
                        "published_low": one.low,
                        "published_high": one.high,
                        "projected_low_ns": low,
                        "projected_high_ns": high,
                    }
                )
    notes = (
        f"PROJECTED, NOT MEASURED: times of {comparison.base} on this machine times a range that others published for "
        "another machine, another protection and other code.",
    )
    headers = ("workload", "source", "n", "setting", "published ratio", "projected")
    return Table(headers, tuple(rows), notes, tuple(records)) if rows else None


def duration(nanoseconds: float) -> str:
    """``1.234 ms``."""
    scale, unit = next(((s, u) for s, u in UNITS if nanoseconds >= s), UNITS[-1])
    return f"{nanoseconds / scale:.4g} {unit}"


def shown(one: Ratio | None) -> str:
    """``1.052 [1.031, 1.074]``."""
    if one is None:
        return "—"
    if one.low is None or one.high is None:
        return f"{one.value:.3f}"
    if one.high / one.low > 100:
        return f"{one.value:.3f} [no bounds]"
    return f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"


def _doubts(compared: list[Row]) -> list[str]:
    """Each kind of doubt once, with the largest percentage in it and where it applies."""
    found: dict[str, dict[str, list[int]]] = {}
    for row in compared:
        for doubt in row.doubts:
            shares = found.setdefault(re.sub(r"\d+%", "{}", doubt), {}).setdefault(row.workload, [])
            shares += [int(share) for share in re.findall(r"(\d+)%", doubt)]
    notes = []
    for said, where in found.items():
        largest = max((share for shares in where.values() for share in shares), default=0)
        count = "all workloads" if len(where) == len({r.workload for r in compared}) else ", ".join(where)
        notes.append(f"* {said.replace('{}', f'up to {largest}%')}: {count}.")
    return notes


def _range(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "—"
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _record(comparison: Comparison, row: Row) -> dict[str, Any]:
    one, null = row.ratio, row.null
    return {
        "workload": row.workload,
        "base": comparison.base,
        "arm": row.arm,
        "assurance": comparison.standing[row.arm].assurance,
        "boots_base": one.boots[0],
        "boots_arm": one.boots[1],
        "repeats_base": one.repeats[0],
        "repeats_arm": one.repeats[1],
        "base_ns": one.base,
        "arm_ns": one.other,
        "ratio": one.value,
        "low": one.low,
        "high": one.high,
        "level": one.level,
        "null_ratio": null.value if null else None,
        "null_low": null.low if null else None,
        "null_high": null.high if null else None,
        "noisy": row.noisy,
        "verdict": row.verdict,
        "doubts": "; ".join(row.doubts),
    }
