"""What each defense costs beside none: times, CPU seconds, memory and bytes over repeats, with ratios.

A run's cost is the median over its rounds. A ratio is of a run and of the run without a defense with the same other
settings, seed and repeat, so that what the machine did at that time is in both; its mean over pairs and its 95%
interval are those of the logarithm (Student's t).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import median

from privbench.benchmarks.results.arms import Arm, Estimate, estimate
from privbench.benchmarks.results.load import Results
from privbench.benchmarks.results.runs import Run
from privbench.benchmarks.results.tabular import Table, number

NAME = "costs"


@dataclass(frozen=True)
class Measure:
    """A column.

    Args:
        name: of the metric.
        label: of the column.
        unit: of what is shown, in the metric's own.
        compared: whether a ratio to no defense stands beside it.
        portable: whether every machine counts the same.
    """

    name: str
    label: str
    unit: float = 1.0
    compared: bool = True
    portable: bool = False


MEASURES = (
    Measure("round_seconds", "s/round"),
    Measure("cpu_seconds", "CPU s/round"),
    Measure("client_cpu_seconds", "CPU s/client"),
    Measure("peak_memory_bytes", "memory (MiB)", 2.0**20),
    Measure("update_bytes", "sent (kB)", 1e3, portable=True),
    Measure("received_bytes", "received (kB)", 1e3, portable=True),
    Measure("start_seconds", "start (s)", compared=False),
)


@dataclass(frozen=True)
class Ratio:
    """To the runs without a defense.

    Args:
        mean: of pairs, the geometric.
        low, high: of the 95% interval; ``None`` for a single pair.
        pairs: how many.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int

    def __str__(self) -> str:
        if self.low is None or self.high is None or f"{self.low:.2f}" == f"{self.high:.2f}":
            return f"x{self.mean:.2f}"
        return f"x{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Costs:
    """Of one arm.

    Args:
        arm: with its repeats among its runs.
        values: by metric, one a run.
        ratios: by metric; none where there is no run without a defense to compare with, as for that arm itself.
        apart: of pairs of different machines, whose times have no ratio, in words.
    """

    arm: Arm
    values: Mapping[str, Estimate]
    ratios: Mapping[str, Ratio]
    apart: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        return str(self.arm.runs[0].choices.get("model") or "—")

    @property
    def defense(self) -> str:
        """By name, and that its attestation is emulated where it is."""
        return ", ".join((self.arm.defense, *(m for m in self.arm.more if m == "software TEE")))

    @property
    def parameters(self) -> int:
        return int(self.arm.runs[0].manifest.get("parameters") or 0)


def costs(results: Results) -> list[list[Costs]]:
    """By setup, those with two defenses or more whose runs say what they took; arms with a poisoner are left out.

    Raises:
        Refused: if an arm can't be averaged.
    """
    again: dict[str, list[Run]] = {}
    for run in results.repeats:
        again.setdefault(run.arm_key, []).append(run)
    setups: dict[str, list[Arm]] = {}
    for arm in results.arms():
        if not arm.poisoned and arm.runs[0].series("cpu_seconds"):
            whole = Arm((*arm.runs, *again.get(arm.key, ())), arm.more)
            setups.setdefault(arm.runs[0].setup_key, []).append(whole)
    return [[*_of(arms)] for arms in setups.values() if len(arms) > 1]


def _of(arms: Sequence[Arm]) -> Iterator[Costs]:
    plain = [r for arm in arms for r in arm.runs if r.defense == "none"]
    base = {(r.seed, r.repeat): r for r in plain}
    for arm in arms:
        values = {m.name: [of_run(r, m.name) for r in arm.runs] for m in MEASURES}
        estimates = {
            name: estimate([("absent" if v is None else "ok", v) for v in each]) for name, each in values.items()
        }
        others = [] if arm.defense == "none" else arm.runs
        apart = tuple(_apart(others, base))
        compared = [m for m in MEASURES if others and m.compared and (m.portable or not apart)]
        found = {m.name: _ratio(arm, base, m.name) for m in compared}
        yield Costs(arm, estimates, {name: ratio for name, ratio in found.items() if ratio is not None}, apart)


def _apart(runs: Iterable[Run], base: Mapping[tuple[int, int], Run]) -> Iterator[str]:
    for run in runs:
        plain = base.get((run.seed, run.repeat), run)
        if machine(run) != machine(plain):
            yield f"seed {run.seed}, repeat {run.repeat}, on {machine(run)}, and none on {machine(plain)}"


def of_run(run: Run, metric: str) -> float | None:
    """The median over a run's rounds."""
    series = run.series(metric)
    return median(series.values()) if series else None


def _ratio(arm: Arm, base: Mapping[tuple[int, int], Run], metric: str) -> Ratio | None:
    pairs = [(of_run(r, metric), b and of_run(b, metric)) for r in arm.runs for b in [base.get((r.seed, r.repeat))]]
    if any(not mine or not plain for mine, plain in pairs):
        return None
    logs = Estimate(tuple(log(mine / plain) for mine, plain in pairs if mine and plain), "ok", len(pairs))
    middle, half = logs.mean, logs.half_width
    assert middle is not None
    low, high = (None, None) if half is None else (exp(middle - half), exp(middle + half))
    return Ratio(exp(middle), low, high, len(pairs))


def cost_table(results: Results) -> Table | None:
    """One row an arm; ``None`` where there is nothing to compare.

    Raises:
        Refused: if an arm can't be averaged.
    """
    every = [one for setup in costs(results) for one in setup]
    if not every:
        return None
    shown = [m for m in MEASURES if any(c.values[m.name].state == "ok" for c in every)]
    headers = ["model", "parameters", "defense", "n"]
    for measure in shown:
        headers += [measure.label, *(["ratio"] if measure.compared else [])]
    rows, records = [], []
    for one in every:
        arm = one.arm
        cells = [one.model, f"{one.parameters:,}", one.defense, f"n={arm.n}"]
        record: dict[str, object] = {"model": one.model, "parameters": one.parameters, "defense": arm.defense}
        record |= {"label": arm.label, "n": arm.n, "seeds": " ".join(sorted({str(r.seed) for r in arm.runs}))}
        record |= {"repeats": len({r.repeat for r in arm.runs}), "runs": " ".join(r.id for r in arm.runs)}
        for measure in shown:
            value, ratio = one.values[measure.name], one.ratios.get(measure.name)
            cells.append(number(value, _digits(value, measure), 1 / measure.unit))
            cells += [str(ratio) if ratio else "—"] if measure.compared else []
            record |= {f"{measure.name}_mean": value.mean, f"{measure.name}_half_width": value.half_width}
            if measure.compared:
                record |= {f"{measure.name}_ratio": ratio and ratio.mean}
                record |= {f"{measure.name}_ratio_low": ratio and ratio.low}
                record |= {f"{measure.name}_ratio_high": ratio and ratio.high}
        rows.append(tuple(cells))
        records.append(record)
    return Table(tuple(headers), tuple(rows), tuple(_notes(every)), tuple(records))


def _digits(value: Estimate, measure: Measure) -> int:
    """Three significant digits of the mean."""
    size = abs(value.mean or 0.0) / measure.unit
    return 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3


def _notes(every: Sequence[Costs]) -> Iterator[str]:
    yield "a ± b: mean over n runs (seeds and repeats) of their median round, and half the width of its 95% t-interval."
    yield "ratio: to none with the same seed and repeat, geometric mean and 95% interval."
    yield "memory: largest resident sets of all processes in a round, added up; pages that they share count in each."
    yield "sent, received: by a client in a round, the model among it; start: what comes before the first round."
    for one in sorted({machine(r) for c in every for r in c.arm.runs}):
        yield f"measured on {one}; times are of this machine."
    for one in every:
        if one.apart:
            count = f"{len(one.apart)} of {one.arm.n} pairs are of different machines"
            yield f"{one.arm.label} has no ratio of times and memory: {count} ({one.apart[0]})."
    if any("software TEE" in c.arm.more for c in every):
        yield "software TEE: the attestation is emulated: no memory is encrypted, and what hardware costs isn't in it."


def machine(run: Run) -> str:
    """What a run was measured on, as far as its times depend on it."""
    held = run.manifest.get("machine") or {}
    device = held.get("device") or "cpu"
    where = "" if device == "cpu" else f", device {device}"
    return f"{held.get('processor')}, {held.get('cores')} cores, {held.get('workers')} worker processes{where}"
