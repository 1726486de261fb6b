"""Backdoors against the number of poisoned records (Carlini and Terzis 2022, figures 2 and 3).

A line joins the arms that differ in ``poisoning.records``. Targeted poisoning of several given records is one line: a
seed's rate is the mean over them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from privbench.benchmarks.results.arms import Arm, Estimate, estimate, flatten
from privbench.benchmarks.results.curves import draw_line, label_ticks, places_of
from privbench.benchmarks.results.leakage_curves import without
from privbench.benchmarks.results.load import Results
from privbench.benchmarks.results.style import COLUMN, legend_shape, new, seeds, style, wrap
from privbench.benchmarks.results.tabular import Table, percent

NAME = "asr_by_records"
RECORDS, GIVEN = "poisoning.records", "task.trigger.record"
APART = (RECORDS, GIVEN)
"""What arms of one line differ in."""
ACCURACY, ASR = "accuracy", "asr"


@dataclass(frozen=True)
class Point:
    """The arms of a line with one number of poisoned records.

    Args:
        records: how many are poisoned in each of the poisoner's clients.
        arms: one for each given record, else one.
        given: how many arms there are at other points of the line.
    """

    records: int
    arms: tuple[Arm, ...]
    given: int

    def value(self, metric: str) -> Estimate:
        """Over seeds; a seed's value is the mean over the arms, and without one of them there is none."""
        found = [a.final(metric) for a in self.arms]
        lost = next((e for e in found if e.state != "ok"), None)
        if lost is not None:
            return lost
        if len(self.arms) < self.given or len({a.seeds for a in self.arms}) > 1:
            return estimate([("absent", None)])
        each = zip(*(e.values for e in found), strict=True)
        return estimate([("ok", sum(values) / len(values)) for values in each])


Lines = Mapping[str, Sequence[Point]]


def curves(results: Results) -> Iterator[Lines]:
    """Lines of each setup in which some differ in the number of poisoned records, points ascending.

    Raises:
        Refused: if an arm can't be averaged.
    """
    setups: dict[str, dict[str, dict[int, list[Arm]]]] = {}
    for arm in results.arms():
        poisoning = arm.runs[0].settings.get("poisoning") or {}
        number = poisoning.get("records")
        if isinstance(number, int) and arm.final(ASR).state != "absent":
            settings = arm.runs[0].settings
            lines = setups.setdefault(without(settings, ("defense", "poisoning", "task.trigger")), {})
            lines.setdefault(without(settings, APART), {}).setdefault(number, []).append(arm)
    for lines in setups.values():
        points = [_points(at) for at in lines.values()]
        if any(len(line) > 2 for line in points):
            yield dict(zip(_names(points), points, strict=True))


def _points(at: Mapping[int, Sequence[Arm]]) -> list[Point]:
    given = max(map(len, at.values()))
    return [Point(k, tuple(at[k]), given) for k in sorted(at)]


def draw(lines: Lines) -> Figure:
    """Success above and accuracy below, means over seeds with their 95% t-interval; 0 records are the floor."""
    arms = [a for points in lines.values() for p in points for a in p.arms]
    places = places_of(sorted({p.records for points in lines.values() for p in points}), log=True)
    with style():
        figure = new(COLUMN, 3.4)
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(2.4, 1))
        for panel, metric in ((axes, ASR), (below, ACCURACY)):
            for number, (name, points) in enumerate(lines.items()):
                found = [(float(p.records), p.arms[0], _percent(p.value(metric))) for p in points]
                draw_line(panel, found, name, number, places)
        label_ticks((axes, below), places, log=True)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylabel("attack success rate (%)")
        axes.set_ylim(-3, 103)  # an interval may reach beyond, a rate can't
        below.set_ylabel("accuracy (%)")
        below.set_ylim(top=min(below.get_ylim()[1], 102))
        below.set_xlabel("poisoned records (log scale; 0 is the floor)")
        figure.suptitle(wrap("; ".join([seeds(arms), *_said(lines)]), 60), fontsize=7)
        handles, labels = axes.get_legend_handles_labels()
        columns, wrapped, more = legend_shape(labels, COLUMN)
        figure.set_size_inches(COLUMN, 3.4 + more)
        figure.legend(handles, wrapped, loc="outside lower center", ncols=columns)
    return figure


def records_table(results: Results) -> Table | None:
    """One row a line and number of poisoned records; ``None`` where there is no such curve."""
    cells, rows = [], []
    for lines in curves(results):
        for name, points in lines.items():
            for point in points:
                asr, accuracy, first = point.value(ASR), point.value(ACCURACY), point.arms[0]
                share = _share(first, point.records)
                shown = "—" if share is None else f"{100 * share:.3g}"
                runs = sum(a.n for a in point.arms)
                cells.append(
                    (name, str(point.records), shown, f"n={first.n}", str(runs), percent(asr), percent(accuracy))
                )
                rows.append(
                    {
                        "line": name,
                        "poisoned_records": point.records,
                        "share": share,
                        "seeds": " ".join(map(str, first.seeds)),
                        "runs": runs,
                        **{m: e.mean for m, e in ((ASR, asr), (ACCURACY, accuracy))},
                        **{f"{m}_half_width": e.half_width for m, e in ((ASR, asr), (ACCURACY, accuracy))},
                    }
                )
    if not cells:
        return None
    headers = ("trigger", "poisoned\nrecords", "of all\n(%)", "n", "runs", "ASR\n(%)", "accuracy\n(%)")
    notes = (
        "a ± b: mean and 95% t-interval over n seeds; where runs are several a seed, a seed's rate is their mean.",
        "0 poisoned records: the floor.",
    )
    return Table(headers, tuple(cells), notes, tuple(rows))


def _share(arm: Arm, records: int) -> float | None:
    """Poisoned records of all of the poisoner's clients, of all training records, if the run tells their number."""
    manifest = arm.runs[0].manifest
    trained, clients = manifest.get("training_records"), (manifest.get("poisoner") or {}).get("clients") or [None]
    return len(clients) * records / trained if isinstance(trained, int) else None


def _percent(found: Estimate) -> Estimate:
    return Estimate(tuple(100 * v for v in found.values), found.state, found.seeds)


def _said(lines: Lines) -> Iterator[str]:
    """What of a line isn't one run a seed, and points without a number."""
    for name, points in lines.items():
        if points[0].given > 1:
            yield f"{name}: {points[0].given} records, a run each"
        lost = [str(p.records) for p in points if p.value(ASR).state != "ok"]
        if lost:
            yield f"{name} without a number at {', '.join(lost)}"


def _names(lines: Sequence[Sequence[Point]]) -> list[str]:
    """Lines by the trigger's class, and by whatever else of the trigger, defense or poisoner differs between them."""
    firsts = [points[0].arms[0] for points in lines]
    defenses = [a.defense for a in firsts]
    poisoners = [a.poisoning for a in firsts]
    triggers = [_trigger(a) for a in firsts]
    kinds = [str(t.get("_target_", "trigger")).rpartition(".")[2] for t in triggers]
    names = []
    for number, kind in enumerate(kinds):
        alike = [t for t, other in zip(triggers, kinds, strict=True) if other == kind]
        fields = sorted({f for t in alike for f in t} - {"record"})
        differing = [f for f in fields if len({str(t.get(f)) for t in alike}) > 1]
        parts = [kind, *(f"{f}={triggers[number].get(f)}" for f in differing)]
        parts += [of[number] for of in (defenses, poisoners) if len(set(of)) > 1]
        names.append(", ".join(parts))
    if len(set(names)) == len(names):
        return names
    every = [flatten(a.runs[0].settings) for a in firsts]
    paths = sorted({p for flat in every for p in flat if len({str(f.get(p)) for f in every}) > 1} - set(APART))
    more = [[f"{p}={flat.get(p, 'default')}" for p in paths if not p.startswith("task.trigger")] for flat in every]
    return [", ".join([name, *own]) for name, own in zip(names, more, strict=True)]


def _trigger(arm: Arm) -> dict[str, Any]:
    return ((arm.runs[0].manifest.get("config") or {}).get("task") or {}).get("trigger") or {}
