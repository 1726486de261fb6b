"""The figure of reconstructed signals and table rows over their originals."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from privbench.benchmarks.results.arms import Arm
from privbench.benchmarks.results.artifacts import Recovered, recovered
from privbench.benchmarks.results.load import Results
from privbench.benchmarks.results.reconstructions import absence, blank, title
from privbench.benchmarks.results.style import COLOURS, PAGE, comparable, new, style, wrap

COLUMNS = 3
"""At most this many records: the first ones, in order of round and client, never the best."""
FEATURES = 40
"""At most this many features of a table, the first ones."""


def traces(results: Results, adversary: str) -> Figure | None:
    """A row an arm, a column a record, for the lowest seed: the original, the reconstruction, and the class mean.

    Signals are lines, of which the first channel is drawn; the rows of a table are dots beside its features' names. The
    mean squared error is above each. ``None`` for images, or where nothing was reconstructed.
    """
    arms = [a for a in comparable(results.arms()) if adversary in a.adversaries]
    found = {a.key: recovered(a.runs[0], adversary, COLUMNS) for a in arms}
    shown = [f for f in found.values() if f is not None]
    kinds = {f.kind for f in shown}
    if len(kinds) != 1 or "image" in kinds:
        return None
    first = shown[0]
    features = min(first.originals.shape[-1], FEATURES)
    height = 1.15 if first.kind == "signal" else 0.35 + 0.115 * features
    with style():
        ratios = [height if found[a.key] is not None else 0.4 for a in arms]
        figure = new(PAGE, 0.8 + sum(ratios))
        grid = figure.subplots(len(arms), max(len(f.originals) for f in shown), squeeze=False, height_ratios=ratios)
        for row, arm in zip(grid, arms, strict=True):
            _row(row, arm, found[arm.key], adversary)
        _ends(grid, [a for a in arms if found[a.key] is not None], arms, first)
        handles = {h.get_label(): h for axes in grid.flat for h in axes.get_lines() if h.get_label()[0] != "_"}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
        more = "" if first.originals.shape[-1] == features or first.kind == "signal" else f"; first {features} features"
        figure.suptitle(title(arms, adversary) + more, fontsize=8)
    return figure


def _row(row: Any, arm: Arm, got: Recovered | None, adversary: str) -> None:
    if got is None:
        for axes in row:
            blank(axes)
        text = f"{arm.label}: {absence(arm, 'mse', adversary)}"
        said = row[0].annotate(text, (0, 0.5), xycoords="axes fraction", va="center")
        said.set_in_layout(False)
        return
    for number, axes in enumerate(row):
        if number < len(got.originals):
            _draw(axes, got, number)
        else:
            blank(axes)
    # Beside the panels, where the names of features leave room for it.
    row[-1].annotate(wrap(arm.label, 18), (1.02, 0.5), xycoords="axes fraction", va="center", rotation=270)


def _draw(axes: Axes, got: Recovered, number: int) -> None:
    error = got.score(got.reconstructions)[number]
    guess = got.guesses.get("class_mean")
    text = f"MSE {error:.3g}"
    if guess is not None:
        text += f" (class mean {got.score(guess)[number]:.3g})"
    axes.set_title(text, fontsize=6.5)
    series = [("original", got.originals), ("reconstruction", got.reconstructions)]
    series += [("guess: class mean", guess)] if guess is not None else []
    looks: list[dict[str, Any]] = [{"color": "#9A9A9A"}, {"color": COLOURS[1]}, {"color": COLOURS[0]}]
    if got.kind == "signal":
        for (label, x), look, line, width in zip(series, looks, ("-", "-", ":"), (2.6, 1.0, 1.0), strict=False):
            axes.plot(x[number, 0], label=label, linestyle=line, linewidth=width, **look)
        return
    for (label, x), look, marker, size in zip(series, looks, ("o", "o", "|"), (6.5, 3.2, 7), strict=False):
        values = x[number, :FEATURES]
        axes.plot(values, np.arange(len(values)), marker, label=label, markersize=size, **look)
    names = got.features[:FEATURES] or tuple(f"feature {i}" for i in range(min(got.originals.shape[-1], FEATURES)))
    axes.set_yticks(range(len(names)), names if number == 0 else [""] * len(names))
    axes.tick_params(axis="y", labelsize=6, length=0)
    axes.set_ylim(len(names) - 0.4, -0.6)


def _ends(grid: Any, drawn: list[Arm], arms: list[Arm], first: Recovered) -> None:
    """Axis labels once, and one scale for every panel of a record: no reconstruction may stretch its own."""
    rows = [grid[arms.index(a)] for a in drawn]
    signal = first.kind == "signal"
    for axes in rows[-1]:
        axes.set_xlabel("sample" if signal else "std from the mean")
    for row in rows:
        if signal:
            row[0].set_ylabel("std")
        for number, axes in enumerate(row[: len(first.originals)]):
            x = first.originals[number, 0] if signal else first.originals[number]
            low, high = min(float(x.min()), -1.0), max(float(x.max()), 1.0)
            span = (low - 0.35 * (high - low), high + 0.35 * (high - low))
            (axes.set_ylim if signal else axes.set_xlim)(span)
            axes.xaxis.set_major_locator(MaxNLocator(5))
