"""A comparison as a figure: measured ratios with intervals, and beside them, in a panel of its own, the literature."""

from pathlib import Path

from matplotlib.axes import Axes

from privbench.benchmarks.overhead.compare import Comparison, Row
from privbench.benchmarks.overhead.published import PUBLISHED
from privbench.benchmarks.results.style import COLOURS, MARKERS, PAGE, new, save, style, wrap

NULL = "#B0B0B0"
REACH = 10.0
"""Intervals are cut off beyond this ratio and its inverse, where they say nothing; ratios themselves never are."""


def draw(comparison: Comparison, stem: Path) -> list[Path]:
    """Write ``stem.png`` and ``stem.pdf``."""
    rows = [row for row in comparison.rows if not row.emulated]
    published = [r for r in PUBLISHED if r.low is not None]
    workloads = [*dict.fromkeys(row.workload for row in rows)]
    arms = [*dict.fromkeys(row.arm for row in rows)]
    with style():
        room = (max(2.0, 0.19 * len(workloads) * max(len(arms), 1) + 0.6), 0.3 * len(published) + 0.6)
        figure = new(PAGE, sum(room) + 0.4)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=room)
        _measured(above, comparison, workloads, arms)
        _literature(below, _limits(comparison))
        below.set_xlabel(f"time, over {comparison.base} above, over unprotected below (log scale)")
        figure.legend(loc="outside lower center", ncols=min(len(arms) + 1, 4))
        return save(figure, stem)


def _measured(axes: Axes, comparison: Comparison, workloads: list[str], arms: list[str]) -> None:
    by = {(row.workload, row.arm): row for row in comparison.rows}
    labelled = False
    for place, workload in enumerate(workloads):
        rows = [by[workload, arm] for arm in arms if (workload, arm) in by]
        null = rows[0].null
        if null is not None and null.low is not None and null.high is not None:
            axes.barh(
                place,
                null.high - null.low,
                left=null.low,
                height=0.8,
                color=NULL,
                alpha=0.5,
                label=None if labelled else f"null: {' against '.join(comparison.pair or ())}",
            )
            labelled = True
        for row in rows:
            _point(axes, row, place, arms)
    for i, arm in enumerate(arms):
        axes.plot([], [], color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)], linestyle="", label=arm)
    axes.set_yticks(range(len(workloads)), [wrap(w, 40) for w in workloads])
    axes.set_ylim(len(workloads) - 0.4, -0.6)
    noisy = sum(row.noisy for row in comparison.rows)
    axes.set_title(
        f"Measured, {comparison.level:.0%} intervals over {comparison.cluster}s"
        + (" — NOISY MACHINE" if noisy else ""),
        loc="left",
    )
    axes.axvline(1, color="black", linewidth=0.8)


def _point(axes: Axes, row: Row, place: int, arms: list[str]) -> None:
    i, one = arms.index(row.arm), row.ratio
    at = place + (0.6 * ((i + 0.5) / len(arms) - 0.5) if len(arms) > 1 else 0)
    look = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
    if one.low is None or one.high is None:
        axes.plot(one.value, at, markerfacecolor="none", **look)
    else:
        spread = [[one.value - one.low], [one.high - one.value]]
        axes.errorbar(one.value, at, xerr=spread, capsize=2, linestyle="", **look)


def _limits(comparison: Comparison) -> tuple[float, float]:
    """Of the axis: what was measured, and what was published."""
    values, ends = [1.0, *(r.high for r in PUBLISHED if r.high is not None)], [1.0]
    for one in (r for row in comparison.rows for r in (row.ratio, row.null) if r is not None):
        values.append(one.value)
        ends += [x for x in (one.low, one.high) if x is not None]
    low, high = max(0.95 * min(ends), 1 / REACH), min(1.05 * max(ends), REACH)
    return min(0.95 * min(values), low), max(1.05 * max(values), high)


def _literature(axes: Axes, limits: tuple[float, float]) -> None:
    """Hatched and without points: a range is no measurement, and none of these were taken here."""
    shown = [(r, r.low, r.high) for r in PUBLISHED if r.low is not None and r.high is not None]
    for place, (_, low, high) in enumerate(shown):
        if low == high:
            axes.plot([low, low], [place - 0.35, place + 0.35], color="#666666", linewidth=2)
        else:
            axes.barh(place, high - low, left=low, height=0.7, facecolor="white", edgecolor="#666666", hatch="////")
    axes.set_yticks(range(len(shown)), [wrap(f"{r.source}: {r.setting}", 62) for r, _, _ in shown], fontsize=5.5)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xscale("log")
    low, high = limits
    axes.set_xlim(low, high)
    ticks = [t for t in (0.01, 0.1, 0.2, 0.5, 0.8, 1, 1.2, 1.5, 2, 3, 5, 10, 30, 100, 1000) if low <= t <= high]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_xticks([], minor=True)
    axes.set_title("Ranges from the literature, not measured here", loc="left")
    axes.axvline(1, color="black", linewidth=0.8)
