"""Attacks against defenses: success rates as a matrix, and by round with one panel an attack."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from privbench.benchmarks.results.arms import Arm, Estimate, flatten
from privbench.benchmarks.results.durability import change
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

MATRIX, HARM = "backdoor_matrix", "accuracy_matrix"
Cells = dict[str, dict[str, Arm]]
MANY = 9
"""Columns with which a cell is too narrow for a number and its interval in one line."""


def cells(results: Results, backdoors: bool = True) -> Cells | None:
    """Arms by attack and defense; ``None`` unless there are several of both, and one arm in a cell.

    Args:
        backdoors: of attacks that put a trigger in, which have a success rate; else of the others.
    """
    arms = [a for a in results.arms() if a.poisoned and (a.final("asr").state == "ok") == backdoors]
    names = attack_names(arms)
    found: Cells = {}
    for arm in arms:
        row = found.setdefault(names[arm.key], {})
        if arm.defense in row:
            return None
        row[arm.defense] = arm
    defenses = {d for row in found.values() for d in row}
    return found if len(found) > 1 and len(defenses) > 1 else None


def attack_names(arms: list[Arm], by: str = "poisoning") -> dict[str, str]:
    """What each arm's attack is called, by its key: its option and the settings that tell it from others of it.

    Args:
        by: the group of the attack's settings.
    """
    flat = {a.key: flatten(a.runs[0].settings.get(by) or {}) for a in arms}
    option = {a.key: str(a.runs[0].choices.get(by) or "none") for a in arms}
    names = {}
    for arm in arms:
        alike = [flat[a.key] for a in arms if option[a.key] == option[arm.key]]
        paths = sorted({p for f in alike for p in f})
        differing = [p for p in paths if len({str(f.get(p)) for f in alike}) > 1]
        whole = flatten((arm.runs[0].manifest.get("config") or {}).get(by) or {})
        said = [f"{p.rpartition('.')[2]}={flat[arm.key].get(p, whole.get(p, 'default'))}" for p in differing]
        names[arm.key] = ", ".join((words(option[arm.key]), *said))
    return names


def backdoor_matrix(results: Results) -> Figure | None:
    """Final success rates in percent, an attack a row and a defense a column; ``None`` where there is no matrix."""
    found = cells(results)
    if found is None:
        return None
    values = {(name, d): arm.final("asr") for name, row in found.items() for d, arm in row.items()}
    return _heatmap(found, values, "final attack success rate (%)", ("viridis", 0, 100), "")


def accuracy_matrix(results: Results) -> Figure | None:
    """What attacks without a trigger do to the final accuracy, in percentage points; ``None`` without such a matrix."""
    found = cells(results, backdoors=False)
    if found is None:
        return None
    values = {(name, d): change(arm, "accuracy", results) for name, row in found.items() for d, arm in row.items()}
    if all(value.state == "absent" for value in values.values()):
        return None
    title = "change of final accuracy by the poisoner (percentage points)"
    return _heatmap(found, values, title, ("magma", -100, 0), "+")


def _heatmap(
    found: Cells, values: Mapping[tuple[str, str], Estimate], title: str, scale: tuple[str, float, float], sign: str
) -> Figure:
    """``values`` (fractions) by attack and defense, in percent, on a (colour map, least, most)."""
    defenses = _defenses(found)
    means = np.array([[_mean(values.get((name, d))) for d in defenses] for name in found])
    colours, least, most = scale
    many = len(defenses) > MANY
    with style():
        width = COLUMN if len(defenses) <= 4 else PAGE
        figure = new(width, 1.3 + 0.42 * len(found) + (0.4 if many else 0))
        axes = figure.add_subplot()
        axes.imshow(means, cmap=colours, vmin=least, vmax=most, aspect="auto")
        for i, name in enumerate(found):
            for j, defense in enumerate(defenses):
                value = values.get((name, defense))
                shown = "—" if value is None else _percent(value, sign, "\n" if many else " ")
                dark = not np.isnan(means[i, j]) and means[i, j] < least + 0.6 * (most - least)
                axes.text(j, i, shown, ha="center", va="center", fontsize=6.5, color="white" if dark else "black")
        axes.grid(visible=False)
        axes.set_xticks(range(len(defenses)), [words(d) if many else wrap(words(d), 12) for d in defenses])
        if many:
            axes.tick_params(axis="x", labelrotation=40)
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(found)), [wrap(n, 24) for n in found])
        arms = [a for row in found.values() for a in row.values()]
        # Of the figure, not of the axes, which long names of attacks leave little of its width to.
        said = seeds(arms).replace("95%", "± half a 95%")
        figure.suptitle(wrap(f"{title}, {said}", round(17 * width)), fontsize=7)
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


def _mean(value: Estimate | None) -> float:
    return float("nan") if value is None or value.mean is None else 100 * value.mean


def _percent(value: Estimate, sign: str, between: str) -> str:
    if value.mean is None:
        return number(value, 1)
    half = value.half_width
    return f"{round(100 * value.mean):{sign}d}" + ("" if half is None else f"{between}± {100 * half:.0f}")
