"""A comparison of arms: each workload's ratio to the base, with plain against plain beside it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from privbench.benchmarks.conform import ConfigError, require
from privbench.benchmarks.overhead.admit import Incomparable, admit
from privbench.benchmarks.overhead.compare_notes import NO_NULL, NOISY, Cluster, missing, of_arms, of_rows
from privbench.benchmarks.overhead.plan_arms import ARMS, BASE, NEEDED
from privbench.benchmarks.overhead.proof import Proof, proven
from privbench.benchmarks.overhead.ratio import Boots, Ratio, ratio
from privbench.benchmarks.overhead.record import Record, digest, key
from privbench.benchmarks.overhead.workloads.federated_round import EMULATED

AGAIN = NEEDED[1]


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
        base: name of the arm that others are divided by.
        pair: plain and plain again, whose ratio is the null; ``None`` without both.
        rows: in the records' order.
        standing: by arm, the weakest that stands behind its records.
        notes: in words.
        level: of the intervals.
        boots: by arm, or records.
        cluster: which of the two.
    """

    base: str
    pair: tuple[str, str] | None
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
        null: the arm that is another one a second time: ``again`` is ``plain``, another name is the base.
        cluster: what counts as one number: a boot, or a record where all were taken in one boot.
        allow: fields that may differ (:func:`~privbench.benchmarks.overhead.admit.admit`).
        level: of the intervals.
        seed: of the bootstrap.
        at: the time at which certificates of reports have to be valid; now, if ``None``.

    Raises:
        ConfigError: a name that no record has, or nothing to compare.
        Incomparable: the records differ in more than their protection, or one is of a software TEE.
    """
    given: dict[bytes, Record] = {}
    for record in records:
        same = digest(record)
        given[same] = record if record["evidence"] or same not in given else given[same]
    twice = len(records) - len(given)
    arms: dict[str, list[Record]] = {}
    for record in given.values():
        arms.setdefault(record["arm"], []).append(record)
    base = base or next(iter(arms), "")
    require(base in arms, "base", base, f"an arm of the records: {', '.join(arms) or 'none'}")
    require(len(arms) >= 2, "records", ", ".join(arms), "of two arms or more (arm=NAME names a record's)")
    require(0.5 < level < 1, "level", level, "above 0.5 and below 1")
    require(seed >= 0, "seed", seed, "at least 0")
    require(null != base or null == AGAIN, "null", null, f"another arm than the base, {base}")
    arms = {base: arms.pop(base), **arms}
    standing = {name: _standing(name, some, at) for name, some in arms.items()}
    notes = admit(arms, allow)
    times = {name: _times(some, cluster) for name, some in arms.items()}
    pair = _pair(arms, base, null)
    # The second one of the pair is an arm of its own where there is no other.
    others = [name for name in arms if name != base and not (pair and name == pair[1])] or [
        n for n in arms if n != base
    ]
    rows = []
    for workload in times[base]:
        both = [times[name].get(workload) for name in pair or ()]
        zero = ratio(both[0], both[1], level, seed=seed) if len(both) == 2 and both[0] and both[1] else None
        for name in others:
            if workload in times[name]:
                found = ratio(times[base][workload], times[name][workload], level, seed=seed)
                rows.append(Row(workload, name, found, zero, _doubts([*arms[base], *arms[name]], workload)))
    require(bool(rows), "records", ", ".join(arms), "with a workload that was measured in two arms")
    boots = {name: len({_cluster(r, cluster, n) for n, r in enumerate(some)}) for name, some in arms.items()}
    said = [*of_arms(arms, standing, base, cluster, boots), *notes, *missing(arms), *of_rows(rows, level)]
    said += [] if pair else [NO_NULL]
    said += [f"{twice} records were given more than once, and count once."] if twice else []
    return Comparison(base, pair, tuple(rows), standing, tuple(said), level, boots, cluster)


def _pair(arms: Mapping[str, Any], base: str, null: str) -> tuple[str, str] | None:
    """Two arms that are one thing, the base first if it is one of them: what differs between them has no cause."""
    if null not in arms:
        return None
    if null == AGAIN and BASE in arms:
        return (AGAIN, BASE) if base == AGAIN else (BASE, AGAIN)
    protected = {arm.name for arm in ARMS} - set(NEEDED)
    return None if null == base or (null == AGAIN and base in protected) else (base, null)


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
