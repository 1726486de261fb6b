"""Attacks against defenses: success rates as a matrix, and by round with one panel an attack."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from privbench.benchmarks.results.arms import Arm, flatten
from privbench.benchmarks.results.load import Results
from privbench.benchmarks.results.style import (
    COLUMN,
    PAGE,
    curve,
    legend_shape,
    looks,
    new,
    seeds,
    style,
    words,
    wrap,
)
from privbench.benchmarks.results.tabular import number

MATRIX = "backdoor_matrix"
Cells = dict[str, dict[str, Arm]]


def cells(results: Results) -> Cells | None:
    """Arms by attack and defense; ``None`` unless there are several of both, and one arm in a cell."""
    arms = [a for a in results.arms() if a.poisoned and a.final("asr").state == "ok"]
    names = _names(arms)
    found: Cells = {}
    for arm in arms:
        row = found.setdefault(names[arm.key], {})
        if arm.defense in row:
            return None
        row[arm.defense] = arm
    defenses = {d for row in found.values() for d in row}
    return found if len(found) > 1 and len(defenses) > 1 else None


def _names(arms: list[Arm]) -> dict[str, str]:
    """What an arm's attack is called: its option, and the settings in which others of that option differ."""
    flat = {a.key: flatten(a.runs[0].settings.get("poisoning") or {}) for a in arms}
    names = {}
    for arm in arms:
        alike = [flat[a.key] for a in arms if a.poisoning == arm.poisoning]
        paths = sorted({p for f in alike for p in f})
        differing = [p for p in paths if len({str(f.get(p)) for f in alike}) > 1]
        whole = flatten((arm.runs[0].manifest.get("config") or {}).get("poisoning") or {})
        said = [f"{p.rpartition('.')[2]}={flat[arm.key].get(p, whole.get(p, 'default'))}" for p in differing]
        names[arm.key] = ", ".join((words(arm.poisoning), *said))
    return names


def backdoor_matrix(results: Results) -> Figure | None:
    """Final success rates in percent, an attack a row and a defense a column; ``None`` where there is no matrix."""
    found = cells(results)
    if found is None:
        return None
    defenses = _defenses(found)
    values = np.array([[_mean(row.get(d)) for d in defenses] for row in found.values()])
    with style():
        width = COLUMN if len(defenses) <= 4 else PAGE
        figure = new(width, 1.2 + 0.42 * len(found))
        axes = figure.add_subplot()
        axes.imshow(values, cmap="viridis", vmin=0, vmax=100, aspect="auto")
        for i, row in enumerate(found.values()):
            for j, defense in enumerate(defenses):
                arm = row.get(defense)
                shown = "—" if arm is None else _percent(arm)
                light = not np.isnan(values[i, j]) and values[i, j] < 60
                axes.text(j, i, shown, ha="center", va="center", fontsize=6.5, color="white" if light else "black")
        axes.grid(visible=False)
        axes.set_xticks(range(len(defenses)), [wrap(words(d), 12) for d in defenses])
        axes.set_yticks(range(len(found)), [wrap(n, 24) for n in found])
        arms = [a for row in found.values() for a in row.values()]
        interval = "" if all(a.n == 1 for a in arms) else ", ± half a 95% t-interval"
        count = " to ".join(map(str, sorted({min(a.n for a in arms), max(a.n for a in arms)})))
        axes.set_title(f"final attack success rate (%), n = {count} seeds{interval}", fontsize=7)
    return figure


def by_attack(results: Results) -> Figure | None:
    """Success rates by round, a panel an attack and a line a defense; ``None`` where there is no matrix."""
    found = cells(results)
    if found is None:
        return None
    columns = 2 if len(found) == 4 else min(3, len(found))
    rows = -(-len(found) // columns)
    longest = max(found.values(), key=len)
    # One look for a defense in every panel.
    everywhere: Mapping[str, Arm] = {d: next(r[d] for r in found.values() if d in r) for d in _defenses(found)}
    look = dict(zip(everywhere, looks([*everywhere.values()]).values(), strict=True))
    with style():
        figure = new(PAGE, 1.9 * rows + 0.3)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, (name, row) in zip(grid.flat, found.items(), strict=False):
            for place, (defense, arm) in enumerate(row.items()):
                curve(axes, arm.series("asr"), words(defense), look[defense], place)
            axes.set_title(wrap(name, 30))
            axes.set_ylim(-3, 103)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in grid.flat[len(found) :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel("attack success rate (%)")
        for axes in grid.flat[max(0, len(found) - columns) : len(found)]:  # with nothing below
            axes.set_xlabel("round")
            axes.tick_params(labelbottom=True)
        figure.suptitle(seeds([a for row in found.values() for a in row.values()]), fontsize=7)
        shown = next(a for a, row in zip(grid.flat, found.values(), strict=False) if row is longest)
        handles, labels = shown.get_legend_handles_labels()
        shape, wrapped, more = legend_shape(labels, PAGE)
        figure.set_size_inches(PAGE, 1.9 * rows + 0.3 + more)
        figure.legend(handles, wrapped, loc="outside lower center", ncols=shape)
    return figure


def _defenses(found: Cells) -> list[str]:
    return list(dict.fromkeys(d for row in found.values() for d in row))


def _mean(arm: Arm | None) -> float:
    mean = None if arm is None else arm.final("asr").mean
    return float("nan") if mean is None else 100 * mean


def _percent(arm: Arm) -> str:
    found = arm.final("asr")
    half = found.half_width
    return (
        number(found, 1)
        if found.mean is None
        else f"{100 * found.mean:.0f}" + ("" if half is None else f" ± {100 * half:.0f}")
    )
