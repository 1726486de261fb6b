"""Figures of leakage against one setting: epsilon, records behind an update, local steps or epochs, the round.

A figure joins the arms that differ in exactly that setting; the defense is the colour, and a panel has one adversary
and one unit of epsilon. Clients a round have a figure of their own, in :mod:`.cohorts`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from privbench.benchmarks.build import canonical
from privbench.benchmarks.results.arms import LOWER, Arm, Estimate, flatten, group
from privbench.benchmarks.results.load import Results
from privbench.benchmarks.results.style import (
    COLOURS,
    COLUMN,
    MARKERS,
    PAGE,
    comparable,
    legend_shape,
    new,
    seeds,
    style,
    words,
    wrap,
)

GUESS = "best trivial guess"
MEASURES = {"psnr_db": "PSNR of reconstructions (dB)", "mse": "MSE of reconstructions (lower leaks more)"}
BUDGET = ("privacy.epsilon", "privacy.noise_multiplier")
"""The settings of a defense that epsilon follows from."""
Point = tuple[float, Arm, Estimate]


@dataclass(frozen=True)
class Panel:
    """What one adversary found.

    Args:
        title: names the adversary, and the unit of epsilon.
        lines: by defense ``(x, arm, leakage)``, x ascending; ``inf`` is no guarantee.
        guesses: the best trivial guess by x.
    """

    title: str
    lines: Mapping[str, Sequence[Point]]
    guesses: Mapping[float, float]


@dataclass(frozen=True)
class Curves:
    """A figure.

    Args:
        name: how its file's name begins.
        xlabel: of the setting.
        metric: what is drawn, a key of :data:`MEASURES`.
        panels: one an adversary.
        log: whether x is on a log scale.
        note: what else a reader has to know.
    """

    name: str
    xlabel: str
    metric: str
    panels: tuple[Panel, ...] = field(default=())
    log: bool = True
    note: str = ""


@dataclass(frozen=True)
class Axis:
    """A setting to draw leakage against.

    Args:
        name, xlabel: of the figure.
        paths: settings of which exactly one differs.
        value: what an arm has of it in the attacks of an adversary.
    """

    name: str
    xlabel: str
    paths: tuple[str, ...]
    value: Callable[[Arm, str, str], float | None]


def records(arm: Arm, adversary: str, path: str) -> float | None:
    """True records behind an attacked update, on average over victims, rounds and seeds."""
    rows = (m for r in arm.runs for name in MEASURES for m in r.rows(name, adversary))
    found = [float(m.more["records"]) for m in rows if m.more.get("records") is not None]
    return fmean(found) if found else None


def configured(arm: Arm, adversary: str, path: str) -> float | None:
    """The setting itself."""
    value = flatten(arm.runs[0].manifest.get("config") or {}).get(path, flatten(arm.runs[0].settings).get(path))
    return float(value) if isinstance(value, int | float) else None


SIZES = ("federation.local.batch_size", "task.partition.sizes", "task.records", "federation.clients")
AXES = (
    Axis("leakage_by_records", "records behind an attacked update", SIZES, records),
    Axis("leakage_by_steps", "local steps", ("federation.local.steps",), configured),
    Axis("leakage_by_epochs", "local epochs", ("federation.local.epochs",), configured),
)


def leakage_curves(results: Results) -> Iterator[tuple[str, Figure]]:
    """Name and figure of all curves that ``results`` hold; several setups have several of a name.

    Raises:
        Refused: if an arm can't be averaged.
    """
    arms = results.arms()
    for curves in (*by_epsilon(arms), *(c for axis in AXES for c in by_setting(arms, axis)), *by_round(arms)):
        yield curves.name, draw(curves)


def by_setting(arms: Sequence[Arm], axis: Axis) -> Iterator[Curves]:
    """Curves over arms that differ in one of the axis' settings, and in defense."""
    for path in axis.paths:
        for members in _alike(arms, lambda a, path=path: _without(a.runs[0].settings, ("defense", "poisoning", path))):
            for metric in MEASURES:
                found = []
                for adversary in _adversaries(members, metric):
                    points = [(axis.value(a, adversary, path), a) for a in members if metric in a.measures(adversary)]
                    placed = [(x, a) for x, a in points if x is not None]
                    found += _panel(f"seen by {words(adversary)}", placed, metric, adversary, _defense)
                if found:
                    yield Curves(axis.name, axis.xlabel, metric, tuple(found))


def by_epsilon(arms: Sequence[Arm]) -> Iterator[Curves]:
    """Curves over arms of one setup, of which some differ in epsilon alone; those without a guarantee stand at ∞."""
    for members in _alike(arms, lambda a: a.runs[0].setup_key):
        for metric in MEASURES:
            found = []
            for unit, adversary in sorted({p for a in members for p in a.guarantees()}):
                placed = [(_epsilon(a, unit, adversary), a) for a in members if metric in a.measures(adversary)]
                title = f"{unit}-level, seen by {words(adversary)}"
                found += _panel(title, placed, metric, adversary, _family)
            if found:
                simulated = any(s.simulated for a in members for s in a.guarantees().values())
                note = "noise simulated from a seed" if simulated else ""
                yield Curves("leakage_by_epsilon", "ε against the same adversary", metric, tuple(found), note=note)


def by_round(arms: Sequence[Arm]) -> Iterator[Curves]:
    """Curves over the attacked rounds, where an adversary attacked several."""
    for members in _alike(arms, lambda a: a.runs[0].setup_key, least=1):
        for metric in MEASURES:
            found = []
            for adversary in _adversaries(members, metric):
                lines = {a.label: _rounds(a, metric, adversary) for a in members if metric in a.measures(adversary)}
                guesses: dict[float, float] = {}
                for a in members:
                    best = a.best_baseline(metric, adversary)
                    for n, e in (a.leakage_by_round(f"{metric}_{best[0]}", adversary) if best else {}).items():
                        if e.mean is not None:
                            guesses[n] = _better(metric, guesses.get(n), e.mean)
                if max((len(p) for p in lines.values()), default=0) > 1:
                    found.append(Panel(f"seen by {words(adversary)}", lines, dict(sorted(guesses.items()))))
            if found:
                yield Curves("leakage_by_round", "round", metric, tuple(found), log=False)


def _alike(arms: Sequence[Arm], key: Callable[[Arm], str], least: int = 2) -> Iterator[list[Arm]]:
    """Arms with equal keys that may be drawn together, ``least`` or more."""
    found: dict[str, list[Arm]] = {}
    for arm in arms:
        found.setdefault(key(arm), []).append(arm)
    for members in found.values():
        kept = comparable(members)
        if len(kept) >= least:
            yield kept


def _without(settings: Mapping[str, Any], paths: Iterable[str]) -> str:
    kept = {p: v for p, v in flatten(settings).items() if not any(p == q or p.startswith(f"{q}.") for q in paths)}
    return canonical(kept)


def _defense(arm: Arm) -> str:
    return canonical(arm.runs[0].settings.get("defense") or {})


def _family(arm: Arm) -> str:
    return _without(arm.runs[0].settings.get("defense") or {}, BUDGET)


def _epsilon(arm: Arm, unit: str, adversary: str) -> float:
    stated = arm.guarantees().get((unit, adversary))
    return stated.epsilon if stated else inf


def _adversaries(arms: Iterable[Arm], metric: str) -> list[str]:
    return sorted({x for a in arms for x in a.adversaries if metric in a.measures(x)})


def _rounds(arm: Arm, metric: str, adversary: str) -> list[Point]:
    return [(float(n), arm, e) for n, e in arm.leakage_by_round(metric, adversary).items()]


def _better(metric: str, a: float | None, b: float) -> float:
    return b if a is None else min(a, b) if metric in LOWER else max(a, b)


def _panel(
    title: str, placed: list[tuple[float, Arm]], metric: str, adversary: str, line: Callable[[Arm], str]
) -> list[Panel]:
    """The panel, or nothing unless one line has two different values of the setting."""
    lines: dict[str, list[Point]] = {}
    guesses: dict[float, float] = {}
    for x, arm in sorted(placed, key=lambda p: p[0]):
        lines.setdefault(line(arm), []).append((x, arm, arm.leakage(metric, adversary)))
        best = arm.best_baseline(metric, adversary)
        if best is not None and best[1].mean is not None:
            guesses[x] = _better(metric, guesses.get(x), best[1].mean)
    if not any(len({x for x, *_ in points if isfinite(x)}) > 1 for points in lines.values()):
        return []
    names = _names(lines)
    return [Panel(title, {names[k]: points for k, points in lines.items()}, guesses)]


def _names(lines: Mapping[str, Sequence[Point]]) -> dict[str, str]:
    """Labels of lines: the defense, and what else tells lines with the same defense apart."""
    firsts = {key: points[0][1] for key, points in lines.items()}
    bare = {key: arm.defense for key, arm in firsts.items()}
    alike = [key for key, name in bare.items() if [*bare.values()].count(name) > 1]
    labels = {a.key: a.label for a in group(r for key in alike for r in firsts[key].runs)}
    named = {key: labels[arm.key] if key in alike else bare[key] for key, arm in firsts.items()}
    emulated = {key: "software TEE" in arm.more and "software TEE" not in named[key] for key, arm in firsts.items()}
    return {key: f"{name} (software TEE)" if emulated[key] else name for key, name in named.items()}


def draw(curves: Curves) -> Figure:
    """Means over seeds with their 95% t-interval, and the best trivial guess dashed."""
    arms = list({a.key: a for p in curves.panels for points in p.lines.values() for _, a, _ in points}.values())
    labels = list(dict.fromkeys(name for p in curves.panels for name in p.lines))
    ends = {x for p in curves.panels for points in p.lines.values() for x, *_ in points}
    places = _places(sorted(ends), curves.log)
    with style():
        width = COLUMN if len(curves.panels) == 1 else PAGE
        figure = new(width, 2.4)
        grid = figure.subplots(1, len(curves.panels), sharex=True, sharey=True, squeeze=False)[0]
        free = [n for n in labels if any(x == inf for p in curves.panels for x, *_ in p.lines.get(n, ()))]
        for axes, panel in zip(grid, curves.panels, strict=True):
            for name, points in panel.lines.items():
                # Lines at ∞ stand side by side, in the order of the legend.
                aside = (free.index(name) - (len(free) - 1) / 2) / max(len(free), 4) if name in free else 0.0
                _line(axes, points, name, labels.index(name), _beside(places, aside))
            at = [(places[x], v) for x, v in sorted(panel.guesses.items())]
            axes.plot([x for x, _ in at], [v for _, v in at], color="#555555", linestyle="--", label=GUESS)
            axes.set_title(wrap(panel.title, 44))
            axes.set_xlabel(curves.xlabel)
        _ticks(grid, places, curves.log)
        grid[0].set_ylabel(MEASURES[curves.metric])
        grid[0].set_ylim(bottom=0)
        lost = _lost(curves)
        figure.suptitle(wrap("; ".join(filter(None, [seeds(arms), curves.note, *lost])), int(18 * width)), fontsize=7)
        entries = {label: h for axes in grid for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        ordered = sorted(entries, key=lambda label: label == GUESS)
        columns, wrapped, more = legend_shape(ordered, width)
        figure.set_size_inches(width, 2.4 + more + 0.1 * len(lost))
        figure.legend([entries[n] for n in ordered], wrapped, loc="outside lower center", ncols=columns)
    return figure


def _places(values: Sequence[float], log: bool) -> dict[float, float]:
    """Where each x is drawn: ∞ past the largest, 0 before the least on a log scale."""
    finite = [v for v in values if isfinite(v)]
    positive = [v for v in finite if v > 0]
    low, high = min(positive, default=1.0), max(positive, default=1.0)
    step = max((high / low) ** 0.3, 2.0) if log else max(0.2 * (high - low), 1.0)
    beyond = high * step if log else high + step
    return {v: beyond if v == inf else low / step if log and v <= 0 else v for v in values}


def _beside(places: Mapping[float, float], aside: float) -> dict[float, float]:
    """Places with ∞ shifted by a share of its distance from the largest number, on a log scale."""
    finite = [p for x, p in places.items() if isfinite(x)]
    step = places[inf] / max(finite) if inf in places and finite else 1.0
    return {x: p * step**aside if x == inf else p for x, p in places.items()}


def _line(axes: Axes, points: Sequence[Point], name: str, number: int, places: Mapping[float, float]) -> None:
    measured = [(places[x], e, x) for x, _, e in points if e.mean is not None]
    look: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
    look |= {"markersize": max(3.0, 6.5 - number), "capsize": 2}
    axes.errorbar([], [], label=name, **look)
    # No guarantee is no point on the line that epsilon draws.
    for part in ([p for p in measured if isfinite(p[2])], [p for p in measured if not isfinite(p[2])]):
        halves = [e.half_width for _, e, _ in part]
        errors = None if any(h is None for h in halves) or not part else halves
        means = [e.mean for _, e, _ in part]
        axes.errorbar([x for x, *_ in part], means, yerr=errors, linestyle="-" if len(part) > 1 else "none", **look)


def _ticks(grid: Any, places: Mapping[float, float], log: bool) -> None:
    shown = sorted(places)
    if len(shown) > 8:
        shown = [shown[round(i * (len(shown) - 1) / 7)] for i in range(8)]
    for axes in grid:
        if log:
            axes.set_xscale("log")
        axes.set_xticks(
            [places[x] for x in shown], ["∞" if x == inf else f"{x:.0f}" if x >= 1000 else f"{x:.3g}" for x in shown]
        )
        axes.xaxis.set_minor_locator(NullLocator())


def _lost(curves: Curves) -> list[str]:
    """Points without a number, which nothing is averaged over."""
    found = []
    for panel in curves.panels:
        for name, points in panel.lines.items():
            for state in ("failed", "skipped", "not_applicable", "absent"):
                at = ", ".join(f"{x:.3g}".replace("inf", "∞") for x, _, e in points if e.state == state)
                if at:
                    found.append(f"{name} {words(state)} at {at} ({panel.title})")
    return found
