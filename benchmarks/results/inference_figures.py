"""Figures of inference: empirical beside proven epsilon, and ROC curves beside what a guarantee allows."""

from collections.abc import Sequence
from math import ceil, inf, isfinite
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from privbench.attacks.inference.membership import bound
from privbench.benchmarks.results.arms import Arm
from privbench.benchmarks.results.inference import Found, curves, inferred, of_arm
from privbench.benchmarks.results.load import Results
from privbench.benchmarks.results.runs import Run
from privbench.benchmarks.results.style import (
    COLOURS,
    COLUMN,
    PAGE,
    comparable,
    legend_shape,
    looks,
    new,
    seeds,
    style,
    words,
    wrap,
)

EPSILON, ROC = "empirical_epsilon", "membership_roc"
SHAPES = ("o", "s", "^", "D", "v")
LEAST, MOST, MANY = 1e-3, 0.1, 10
"""Between these is the least false positive rate that is drawn: that of so many false positives."""


def empirical_epsilon(results: Results) -> Figure | None:
    """Each seed's lower bound on epsilon beside the proven one, a row an arm, a panel a unit and adversary.

    Args:
        results: that differ in defense and inference alone.

    Raises:
        Refused: if an arm can't be averaged.
    """
    found = inferred(results)
    panels = sorted({(f.unit, f.adversary) for f in found if isfinite(f.proven)})
    panels = panels or sorted({(f.unit, f.adversary) for f in found})
    if not panels:
        return None
    labels = list(dict.fromkeys(f.arm.label for f in found if (f.unit, f.adversary) in panels))
    methods = sorted({f.method for f in found})
    finite = [f.proven for f in found if isfinite(f.proven)]
    most = 1.12 * max([*finite, *(e for f in found for e in f.empirical), 1.0])
    with style():
        columns = min(2, len(panels))
        rows = ceil(len(panels) / columns)
        figure = new(COLUMN if columns == 1 else PAGE, rows * (0.65 + 0.36 * len(labels)) + 0.25)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            own = [f for f in found if (f.unit, f.adversary) == panel]
            _rows(axes, own, labels, methods, most)
            axes.set_title(f"{panel[0]}-level, against {words(panel[1])}")
            axes.set_xlabel("ε")
        grid.flat[0].set_yticks(range(len(labels)), [wrap(label, 26) for label in labels])
        grid.flat[0].set_ylim(len(labels) - 0.5, -0.5)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for column in grid.T:
            [axes for axes in column if axes.get_visible()][-1].tick_params(labelbottom=True)
        arms = list({f.arm.key: f.arm for f in found}.values())
        figure.suptitle(f"lower bounds of single runs, {seeds(arms).split(',')[0]}", fontsize=7)
        _legend(figure, [_methods(methods), grid.flat[0].get_legend_handles_labels()])
    return figure


def _rows(axes: Axes, found: Sequence[Found], labels: list[str], methods: list[str], most: float) -> None:
    gap = 0.5 / max(1, len(methods))
    axes.set_xlim(-0.02 * most, 1.1 * most)
    axes.axvspan(1.01 * most, 1.1 * most, color="#F3F3F3", linewidth=0, zorder=0)
    for f in found:
        row, place = labels.index(f.arm.label), methods.index(f.method)
        y = row + gap * (place - (len(methods) - 1) / 2)
        at = f.proven if isfinite(f.proven) else 1.055 * most
        axes.plot([at, at], [row - 0.36, row + 0.36], color="black", linewidth=1.4)
        if f.proven == inf:
            axes.text(at, row + 0.02, "∞", ha="center", va="center", fontsize=8, backgroundcolor="#F3F3F3")
        colour = COLOURS[1] if f.violated else COLOURS[0]
        face = colour if f.method == "canaries" else "white"
        axes.plot(f.empirical, [y] * len(f.empirical), SHAPES[place], color=colour, markerfacecolor=face)
        said = [f"power {f.power:.2g}"] if f.power is not None else []
        said += ["BUG"] if f.violated else []
        if said:
            where = (max(f.empirical, default=0.0), y)
            text = axes.annotate(", ".join(said), where, (5, 0), textcoords="offset points", va="center", fontsize=6)
            # What is said may lie across the line of the proven value.
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6})
            text.set_in_layout(False)
    axes.plot([], [], "|", color="black", markersize=9, markeredgewidth=1.4, label="proven (∞: nothing)")
    axes.grid(axis="y", visible=False)


def _methods(methods: list[str]) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    def look(place: int, name: str) -> Line2D:
        face = COLOURS[0] if name == "canaries" else "white"
        return Line2D([], [], linestyle="none", marker=SHAPES[place], color=COLOURS[0], markerfacecolor=face)

    return [look(i, m) for i, m in enumerate(methods)], [f"empirical, {words(m)}" for m in methods]


def membership_roc(results: Results) -> Figure | None:
    """ROC of membership inference in log-log, one line an arm; dashed, what its guarantee allows at most.

    A panel for the attack, one for its baseline. The mean over seeds of TPR at each FPR.

    Raises:
        Refused: if an arm can't be averaged.
    """
    arms = [a for a in comparable(results.arms()) if curves(a)] if results.runs else []
    if not arms:
        return None
    kinds = [("", _name(arms[0]))]
    if kinds[0][1] != "loss_threshold":
        kinds.append(("_loss_threshold", "loss_threshold"))
    least = min(MOST, max(LEAST, *(MANY / _others(r) for a in arms for r in a.runs)))
    with style():
        figure = new(COLUMN if len(kinds) == 1 else PAGE, 2.5)
        panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        rates = np.geomspace(least, 1, 200)
        for axes, (suffix, name) in zip(panels, kinds, strict=True):
            for arm, look in zip(arms, looks(arms).values(), strict=True):
                mean = np.mean([c.at(rates) for c in curves(arm, suffix)], axis=0)
                axes.plot(rates, np.maximum(mean, least / 10), label=arm.label, color=look["color"])
                _allowed(axes, arm, rates, look["color"])
            axes.plot(rates, rates, color="#555555", linestyle=":", label="guessing")
            axes.plot([], [], color="#555555", linestyle="--", label="allowed by its ε and δ")
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xlim(least, 1)
            axes.set_ylim(least / 2, 1.1)
            axes.set_xlabel("false positive rate")
            axes.set_title(words(name).replace("lira", "LiRA,"))
        panels[0].set_ylabel("true positive rate")
        figure.suptitle(f"against the model's recipient; {seeds(arms).split(',')[0]}", fontsize=7)
        _legend(figure, [panels[0].get_legend_handles_labels()])
    return figure


def _others(run: Run) -> int:
    """How many non-members were told apart."""
    return min(int(m.more.get("non_members") or MANY) for m in run.metrics if m.name == "membership_auc")


def _name(arm: Arm) -> str:
    rows = (m for r in arm.runs for m in r.metrics if m.name == "membership_auc")
    return next((str(m.more.get("method")) for m in rows), "membership")


def _allowed(axes: Axes, arm: Arm, rates: np.ndarray, colour: Any) -> None:
    """What is proven of single records, as the candidates are; a client's epsilon is not."""
    for found in of_arm(arm):
        if found.adversary == "model_recipient" and found.method != "canaries" and found.allowed:
            axes.plot(rates, bound(*found.allowed, rates), color=colour, linestyle="--", linewidth=0.9)


def _legend(figure: Figure, entries: Sequence[tuple[Sequence[Any], Sequence[Any]]]) -> None:
    handles = [h for found, _ in entries for h in found]
    width, height = figure.get_size_inches()
    columns, labels, more = legend_shape([str(label) for _, found in entries for label in found], width)
    figure.set_size_inches(width, height + more)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
