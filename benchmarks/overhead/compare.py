"""A comparison of arms: each workload's ratio to the base, with plain against plain beside it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from privbench.benchmarks.conform import ConfigError, require
from privbench.benchmarks.overhead.admit import Incomparable, admit
from privbench.benchmarks.overhead.proof import Proof, proven
from privbench.benchmarks.overhead.ratio import LEAST_BOOTS, Boots, Ratio, ratio
from privbench.benchmarks.overhead.record import Record, key
from privbench.benchmarks.overhead.workloads.federated_round import EMULATED

NOISY = 0.05
"""Half-width of the null's interval from which a machine is called noisy for a workload."""

WANTED_BOOTS = 5
NO_SIGN = "no sign of protection"

Cluster = Literal["boot", "record"]


@dataclass(frozen=True)
class Row:
    """One workload under one arm.

    Args:
        workload: ``workload/case``, with the ablation if it is one.
        arm: the other one.
        ratio: to the base.
        null: plain against plain, of the same workload; ``None`` without a null arm.
        doubts: what the records themselves hold against these times.
    """

    workload: str
    arm: str
    ratio: Ratio
    null: Ratio | None
    doubts: tuple[str, ...]

    @property
    def emulated(self) -> bool:
        """Whether a TEE emulated in software is part of what was timed: no figure of hardware."""
        return EMULATED in self.doubts

    @property
    def noisy(self) -> bool:
        """Whether plain differs from itself, or could by more than :data:`NOISY`."""
        return self.null is not None and (self.null.found or (self.null.width or 0.0) > NOISY)

    @property
    def verdict(self) -> str:
        """In a few words, for a table."""
        if self.ratio.low is None:
            return "too few boots"
        if self.null is not None and self.null.found:
            return "noisy machine"
        if self.ratio.found and self.null is not None and self.null.holds(self.ratio.value):
            return "within the null"
        if not self.ratio.found:
            return "no difference found"
        return "slower" if self.ratio.value > 1 else "faster"


@dataclass(frozen=True)
class Comparison:
    """All rows, and what a reader has to know beside them.

    Args:
        base, null: names of the arms; ``null`` is ``None`` without one.
        rows: in the records' order.
        standing: by arm, the weakest that stands behind its records.
        notes: in words.
        level: of the intervals.
        boots: by arm, or records.
        cluster: which of the two.
    """

    base: str
    null: str | None
    rows: tuple[Row, ...]
    standing: Mapping[str, Proof]
    notes: tuple[str, ...]
    level: float
    boots: Mapping[str, int]
    cluster: Cluster


def compare(
    records: Sequence[Record],
    base: str | None = None,
    null: str = "again",
    cluster: Cluster = "boot",
    allow: Iterable[str] = (),
    level: float = 0.95,
    seed: int = 0,
    at: datetime | None = None,
) -> Comparison:
    """Compare the arms of ``records`` with one of them.

    Args:
        records: checked; those of one arm belong together.
        base: the arm that others are divided by; ``None``: that of the first record.
        null: the arm that is the base again.
        cluster: what counts as one number: a boot, or a record where all were taken in one boot.
        allow: fields that may differ (:func:`~privbench.benchmarks.overhead.admit.admit`).
        level: of the intervals.
        seed: of the bootstrap.
        at: the time at which certificates of reports have to be valid; now, if ``None``.

    Raises:
        ConfigError: a name that no record has, or nothing to compare.
        Incomparable: the records differ in more than their protection, or one is of a software TEE.
    """
    arms: dict[str, list[Record]] = {}
    for record in records:
        arms.setdefault(record["arm"], []).append(record)
    base = base or next(iter(arms), "")
    require(base in arms, "base", base, f"an arm of the records: {', '.join(arms) or 'none'}")
    require(len(arms) >= 2, "records", ", ".join(arms), "of two arms or more (arm=NAME names a record's)")
    require(0.5 < level < 1, "level", level, "above 0.5 and below 1")
    arms = {base: arms.pop(base), **arms}
    standing = {name: _standing(name, some, at) for name, some in arms.items()}
    notes = admit(arms, allow)
    times = {name: _times(some, cluster) for name, some in arms.items()}
    others = [name for name in arms if name not in (base, null)] or [null]
    rows = []
    for workload in times[base]:
        again = times[null].get(workload) if null in times else None
        zero = ratio(times[base][workload], again, level, seed=seed) if again else None
        for name in others:
            if workload in times[name]:
                found = ratio(times[base][workload], times[name][workload], level, seed=seed)
                rows.append(Row(workload, name, found, zero, _doubts([*arms[base], *arms[name]], workload)))
    require(bool(rows), "records", ", ".join(arms), "with a workload that was measured in two arms")
    boots = {name: len({_cluster(r, cluster, n) for n, r in enumerate(some)}) for name, some in arms.items()}
    more = [*_of_arms(arms, standing, null, base, cluster, boots), *notes, *_missing(arms), *_of_rows(rows, level)]
    return Comparison(base, null if null in arms else None, tuple(rows), standing, tuple(more), level, boots, cluster)


def _standing(arm: str, records: Sequence[Record], at: datetime | None) -> Proof:
    """What stands behind the weakest record of an arm; a software TEE has no place here."""
    order = ("none", "custom", "hardware")
    found = [proven(record, at) for record in records]
    if any(one.assurance == "software" for one in found):
        raise Incomparable([f"{arm}: its records carry reports of a software TEE, which has no place beside hardware"])
    return min(found, key=lambda one: order.index(one.assurance))


def _times(records: Sequence[Record], cluster: Cluster) -> dict[str, Boots]:
    """Nanoseconds of one call, by workload and cluster."""
    found: dict[str, dict[str, list[float]]] = {}
    for number, record in enumerate(records):
        for one in record["measurements"]:
            if one["status"] == "measured":
                boots = found.setdefault(key(one), {})
                boots.setdefault(_cluster(record, cluster, number), []).extend(
                    wall / one["calls"] for wall in one["wall_ns"]
                )
    return dict(found)


def _cluster(record: Record, cluster: Cluster, number: int) -> str:
    return record["boot"] if cluster == "boot" else str(number)


def _doubts(records: Sequence[Record], workload: str) -> tuple[str, ...]:
    said = [
        doubt for record in records for one in record["measurements"] if key(one) == workload for doubt in one["doubts"]
    ]
    return tuple(dict.fromkeys(said))


def _missing(arms: Mapping[str, Sequence[Record]]) -> list[str]:
    where: dict[tuple[str, str], dict[str, None]] = {}
    for name, records in arms.items():
        for one in (one for record in records for one in record["measurements"] if one["status"] != "measured"):
            where.setdefault((key(one), one["reason"]), {})[name] = None
    return [f"{what} isn't measured under {', '.join(names)}: {why}." for (what, why), names in where.items()]


def _of_arms(
    arms: Mapping[str, Sequence[Record]],
    standing: Mapping[str, Proof],
    null: str,
    base: str,
    cluster: Cluster,
    boots: Mapping[str, int],
) -> list[str]:
    notes = []
    for name, proof in standing.items():
        claimed = "; ".join(dict.fromkeys(_claimed(record) for record in arms[name]))
        worth = {"hardware": "proven: ", "custom": "under a root of your own: "}.get(proof.assurance, "not proven: ")
        notes.append(f"{name}: {worth}{proof.reason}. The kernel's own word: {claimed}.{_gpus(arms[name])}")
    own = dict.fromkeys(_claimed(record) for record in arms[base])
    if standing[base].assurance != "none" or [*own] != [NO_SIGN]:
        said = "; ".join(own)
        notes.append(f"{base} shows signs of protection itself: {said}. No ratio here is to an unprotected machine.")
    if null not in arms:
        notes.append("No null: without plain against plain, nobody knows what these ratios would be without any cause.")
    if cluster == "record":
        notes.append("Clustered by record: what differs from boot to boot isn't in these intervals.")
    few = [f"{name} {count}" for name, count in boots.items() if count < WANTED_BOOTS]
    if few:
        notes.append(
            f"Few boots ({', '.join(few)}): below {LEAST_BOOTS} there is no interval, below {WANTED_BOOTS} a slow-down "
            "of 1.05 is mostly missed."
        )
    notes += _order(arms, base)
    shared = {r["boot"] for r in arms[base]} & {r["boot"] for name, some in arms.items() if name != base for r in some}
    if shared:
        notes.append(
            "Arms share a boot: they differ in what was done within it, not in what the machine was booted with."
        )
    return notes


def _order(arms: Mapping[str, Sequence[Record]], base: str) -> list[str]:
    """Arms that were taken wholly before or after the base: whatever changed meanwhile is in their ratios."""
    times = {name: [datetime.fromisoformat(r["created"]) for r in records] for name, records in arms.items()}
    apart = [
        name
        for name, taken in times.items()
        if name != base and (min(taken) > max(times[base]) or max(taken) < min(times[base]))
    ]
    if not apart:
        return []
    return [
        f"NOT INTERLEAVED: {', '.join(apart)} and {base} were taken one after the other; what changed meanwhile counts."
    ]


def _gpus(records: Sequence[Record]) -> str:
    """What the driver says of each GPU's confidential computing."""
    every = [g for record in records for g in record["machine"]["gpus"] or ()]
    states = dict.fromkeys(f"{g['name']}: {g['feature'] or 'unknown'}" for g in every)
    return f" The driver's word of confidential computing: {'; '.join(states)}." if states else ""


def _claimed(record: Record) -> str:
    seen = [s for s in record["signs"] if s["found"] and s["strength"] not in ("capability", "proof")]
    return seen[0]["says"] if seen else NO_SIGN


def _of_rows(rows: Sequence[Row], level: float) -> list[str]:
    notes = []
    noisy = dict.fromkeys(r.workload for r in rows if r.noisy)
    compared = dict.fromkeys(r.workload for r in rows if r.null is not None)
    if noisy:
        notes.append(
            f"NOISY MACHINE: in {len(noisy)} of {len(compared)} workloads plain differs from plain, or may by more "
            f"than {NOISY:.0%}: {', '.join(noisy)}."
        )
    if len(rows) > 1:
        by_chance = (1 - level) * len(rows)
        notes.append(f"{len(rows)} intervals of {level:.0%}: about {by_chance:.1f} would leave 1 by chance alone.")
    return notes


def load(paths: Iterable[Any]) -> list[Record]:
    """Records of files and of folders' ``*.json``.

    Raises:
        ConfigError: a path that isn't there, a folder without records, or a file that is no record.
    """
    from pathlib import Path

    from privbench.benchmarks.overhead.record import read

    found: list[Record] = []
    for path in map(Path, paths):
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not files:
            raise ConfigError("record", str(path), "a record, or a folder with records (*.json)")
        found += [read(file) for file in files]
    return found
