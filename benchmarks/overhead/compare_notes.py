"""What a comparison says beside its numbers: what stands behind an arm, what is missing, how noisy the machine was."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from privbench.benchmarks.overhead.proof import Proof
from privbench.benchmarks.overhead.ratio import LEAST_BOOTS
from privbench.benchmarks.overhead.record import Record, key

if TYPE_CHECKING:
    from privbench.benchmarks.overhead.compare import Row

Cluster = Literal["boot", "record"]
NOISY = 0.05
"""Half-width of the null's interval from which a machine is called noisy for a workload."""
WANTED_BOOTS = 5
NO_SIGN = "no sign of protection"
NO_NULL = "No null: without plain against plain, nobody knows what these ratios would be without any cause."


def missing(arms: Mapping[str, Sequence[Record]]) -> list[str]:
    where: dict[tuple[str, str], dict[str, None]] = {}
    for name, records in arms.items():
        for one in (one for record in records for one in record["measurements"] if one["status"] != "measured"):
            where.setdefault((key(one), one["reason"]), {})[name] = None
    return [f"{what} isn't measured under {', '.join(names)}: {why}." for (what, why), names in where.items()]


def of_arms(
    arms: Mapping[str, Sequence[Record]],
    standing: Mapping[str, Proof],
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
    if cluster == "record":
        notes.append("Clustered by record: what differs from boot to boot isn't in these intervals.")
    few = [f"{name} {count}" for name, count in boots.items() if count < WANTED_BOOTS]
    if few:
        notes.append(
            f"Few boots ({', '.join(few)}): below {LEAST_BOOTS} there is no interval, with 3 a slow-down of "
            "1.05 is mostly missed, with 4 half the time."
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


def of_rows(rows: "Sequence[Row]", level: float) -> list[str]:
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
