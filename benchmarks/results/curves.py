"""How leakage against one setting is drawn: lines by defense, a panel an adversary, the best trivial guess dashed,
and where it is asked for the accuracy of the same runs below, on the same axis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, log10
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from privbench.benchmarks.results.arms import Arm, Estimate
from privbench.benchmarks.results.style import (
    COLOURS,
    COLUMN,
    MARKERS,
    PAGE,
    legend_shape,
    new,
    seeds,
    style,
    words,
    wrap,
)

GUESS, CHANCE = "best trivial guess", "accuracy of guessing"
MEASURES = {"psnr_db": "PSNR of reconstructions (dB)", "mse": "MSE of reconstructions (lower leaks more)"}
Point = tuple[float, Arm, Estimate]


@dataclass(frozen=True)
class Panel:
    """What one adversary found.

    Args:
        title: names the adversary, and the unit of epsilon.
        lines: by defense ``(x, arm, leakage)``, x ascending; ``inf`` is no guarantee.
        guesses: the best trivial guess by x.
        accuracy: in percent, lines as in ``lines``, for a panel below; empty for none.
        chance: accuracy of guessing, in percent.
        unattacked: what is said of victims that are in no mean.
    """

    title: str
    lines: Mapping[str, Sequence[Point]]
    guesses: Mapping[float, float]
    accuracy: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    chance: float | None = None
    unattacked: Sequence[str] = ()


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


def draw(curves: Curves) -> Figure:
    """Means over seeds with their 95% t-interval, and the best trivial guess dashed."""
    arms = list({a.key: a for p in curves.panels for points in p.lines.values() for _, a, _ in points}.values())
    labels = list(dict.fromkeys(name for p in curves.panels for name in p.lines))
    ends = {x for p in curves.panels for points in p.lines.values() for x, *_ in points}
    places = places_of(sorted(ends), curves.log)
    with style():
        width = COLUMN if len(curves.panels) == 1 else PAGE
        rows = 2 if any(p.accuracy for p in curves.panels) else 1
        height = 1.0 + 1.5 * rows if rows > 1 else 2.4
        figure = new(width, height)
        grid = figure.subplots(rows, len(curves.panels), sharex=True, sharey="row", squeeze=False)
        free = [n for n in labels if any(x == inf for p in curves.panels for x, *_ in p.lines.get(n, ()))]
        for column, panel in zip(grid.T, curves.panels, strict=True):
            for axes, lines in zip(column, (panel.lines, panel.accuracy), strict=False):
                for name, points in lines.items():
                    # Lines at ∞ stand side by side, in the order of the legend.
                    aside = (free.index(name) - (len(free) - 1) / 2) / max(len(free), 4) if name in free else 0.0
                    draw_line(axes, points, name, labels.index(name), beside(places, aside))
            at = [(places[x], v) for x, v in sorted(panel.guesses.items())]
            dashed: dict[str, Any] = {"color": "#555555", "linestyle": "--"}
            column[0].plot([x for x, _ in at], [v for _, v in at], label=GUESS, **dashed)
            if panel.chance is not None:
                column[1].axhline(panel.chance, label=CHANCE, **dashed | {"linestyle": ":"})
            column[0].set_title(wrap(panel.title, 88 // len(curves.panels)))
            column[-1].set_xlabel(curves.xlabel)
        label_ticks(grid.flat, places, curves.log)
        for axes, label in zip(grid[:, 0], (MEASURES[curves.metric], "accuracy (%)"), strict=False):
            axes.set_ylabel(label)
            axes.set_ylim(bottom=0)
        lost = _lost(curves)
        figure.suptitle(wrap("; ".join(filter(None, [seeds(arms), curves.note, *lost])), int(18 * width)), fontsize=7)
        entries = {label: h for axes in grid.flat for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        ordered = sorted(entries, key=lambda label: label in (GUESS, CHANCE))
        columns, wrapped, more = legend_shape(ordered, width)
        figure.set_size_inches(width, height + more + 0.1 * len(lost))
        figure.legend([entries[n] for n in ordered], wrapped, loc="outside lower center", ncols=columns)
    return figure


def places_of(values: Sequence[float], log: bool) -> dict[float, float]:
    """Where each x is drawn: ∞ past the largest, 0 before the least on a log scale."""
    finite = [v for v in values if isfinite(v)]
    positive = [v for v in finite if v > 0]
    low, high = min(positive, default=1.0), max(positive, default=1.0)
    step = max((high / low) ** 0.3, 2.0) if log else max(0.2 * (high - low), 1.0)
    beyond = high * step if log else high + step
    return {v: beyond if v == inf else low / step if log and v <= 0 else v for v in values}


def beside(places: Mapping[float, float], aside: float) -> dict[float, float]:
    """Places with ∞ shifted by a share of its distance from the largest number, on a log scale."""
    finite = [p for x, p in places.items() if isfinite(x)]
    step = places[inf] / max(finite) if inf in places and finite else 1.0
    return {x: p * step**aside if x == inf else p for x, p in places.items()}


def draw_line(axes: Axes, points: Sequence[Point], name: str, number: int, places: Mapping[float, float]) -> None:
    measured = [(places[x], e, x) for x, _, e in points if e.mean is not None]
    look: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
    look |= {"markersize": max(3.0, 6.5 - number), "capsize": 2}
    axes.errorbar([], [], label=name, **look)
    # No guarantee is no point on the line that epsilon draws.
    for part in ([p for p in measured if isfinite(p[2])], [p for p in measured if not isfinite(p[2])]):
        halves = [e.half_width for _, e, _ in part]
        errors = None if any(h is None for h in halves) or not part else halves
        means = [e.mean for _, e, _ in part]
        joined = len(part) > 1 and isfinite(part[0][2])
        axes.errorbar([x for x, *_ in part], means, yerr=errors, linestyle="-" if joined else "none", **look)


def label_ticks(grid: Any, places: Mapping[float, float], log: bool) -> None:
    shown = sorted(places)
    if len(shown) > 8:
        shown = [shown[round(i * (len(shown) - 1) / 7)] for i in range(8)]
    if log:
        shown = _apart(shown, places)
    for axes in grid:
        if log:
            axes.set_xscale("log")
        axes.set_xticks([places[x] for x in shown], [_number(x) for x in shown])
        axes.xaxis.set_minor_locator(NullLocator())


def _apart(shown: Sequence[float], places: Mapping[float, float]) -> list[float]:
    """Those whose labels don't touch on a log scale; whole numbers and the ends have the first choice."""
    at = {x: log10(places[x]) for x in shown}
    least = 0.1 * (max(at.values()) - min(at.values()))
    kept: list[float] = []
    for x in sorted(shown, key=lambda x: (x not in (shown[0], shown[-1]), not float(x).is_integer(), x)):
        if all(abs(at[x] - at[other]) >= least for other in kept):
            kept.append(x)
    return sorted(kept)


def _number(x: float) -> str:
    """As short as can be: 10000 as a power of ten."""
    if x == inf:
        return "∞"
    power = round(log10(x)) if x >= 1e4 else 0
    if x >= 1e4 and abs(x / 10**power - 1) < 1e-9:
        return f"$10^{{{power}}}$"
    return f"{x:.0f}" if 1000 <= x < 1e5 else f"{x:.3g}"


def place(x: float) -> str:
    """``x`` in a sentence."""
    return f"{x:.3g}".replace("inf", "∞")


def _lost(curves: Curves) -> list[str]:
    """Points without a number, which nothing is averaged over, and victims that aren't in those with one."""
    found = []
    for panel in curves.panels:
        found += [f"{said} ({panel.title})" for said in panel.unattacked]
        for name, points in panel.lines.items():
            for state in ("failed", "skipped", "not_applicable", "absent"):
                at = ", ".join(place(x) for x, _, e in points if e.state == state)
                if at:
                    found.append(f"{name} {words(state)} at {at} ({panel.title})")
    return found
