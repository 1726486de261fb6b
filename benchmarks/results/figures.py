"""Figures: pure functions of loaded results. Each returns ``None`` where there is nothing to show."""

from collections.abc import Iterator
from math import ceil, isfinite, log10
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from privbench.benchmarks.results.arms import GUESSES, Arm, estimate
from privbench.benchmarks.results.attested import attested_clients
from privbench.benchmarks.results.inference_figures import ROC, membership_roc
from privbench.benchmarks.results.load import Results
from privbench.benchmarks.results.matrix import HARM, MATRIX, accuracy_matrix, backdoor_matrix, by_attack
from privbench.benchmarks.results.mechanisms import noise_mechanisms
from privbench.benchmarks.results.reconstructions import reconstructions
from privbench.benchmarks.results.style import (
    COLOURS,
    COLUMN,
    PAGE,
    chance,
    comparable,
    curve,
    legend_shape,
    looks,
    new,
    save,
    seeds,
    slug,
    style,
    words,
    wrap,
)
from privbench.benchmarks.results.table import floor
from privbench.benchmarks.results.tabular import number
from privbench.benchmarks.results.traces import traces
from privbench.benchmarks.results.unattacked import unattacked

__all__ = [
    "accuracy_matrix",
    "accuracy_over_rounds",
    "asr_over_rounds",
    "attested_clients",
    "backdoor_matrix",
    "every",
    "leakage",
    "noise_mechanisms",
    "privacy_utility",
    "reconstructions",
    "save",
    "traces",
    "write",
]
NAMES = (
    "privacy_utility",
    "accuracy_over_rounds",
    "asr_over_rounds",
    "leakage",
    "noise_mechanisms",
    "attested_clients",
    ROC,
    MATRIX,
    HARM,
    "reconstructions",
)
"""How the names of the files begin."""


def every(results: Results) -> Iterator[tuple[str, Figure]]:
    """Name and figure of all that ``results`` of one setup have to show.

    Raises:
        Refused: if an arm can't be averaged.
    """
    simple = (privacy_utility, accuracy_over_rounds, asr_over_rounds, leakage, noise_mechanisms, attested_clients)
    simple = (*simple, membership_roc, backdoor_matrix, accuracy_matrix)
    for name, draw in zip(NAMES, simple, strict=False):
        figure = draw(results)
        if figure is not None:
            yield name, figure
    for adversary in sorted({x for a in results.arms() for x in a.adversaries}):
        figure = reconstructions(results, adversary) or traces(results, adversary)
        if figure is not None:
            yield f"reconstructions_{slug(adversary)}", figure


def accuracy_over_rounds(results: Results) -> Figure | None:
    """Accuracy of the global model by round; arms with a poisoner are left out if there are any without."""
    arms = [a for a in comparable(results.arms()) if a.series("accuracy")]
    if not arms:
        return None
    with style():
        figure = new(COLUMN, 2.2)
        axes = figure.add_subplot()
        for number, (arm, look) in enumerate(zip(arms, looks(arms).values(), strict=True)):
            curve(axes, arm.series("accuracy"), arm.label, look, number)
        _chance(axes, results)
        _percent(axes)
        _rounds(axes, "accuracy (%)", _poisoner(arms) + seeds(arms))
        _legend(figure, axes)
    return figure


def asr_over_rounds(results: Results) -> Figure | None:
    """Backdoor success of each poisoned arm by round; the floor of its twin without poisoner is dashed.

    Of attacks against defenses that are too many for one panel, a panel an attack.
    """
    every = results.arms()
    arms = [a for a in every if a.poisoned and a.series("asr")]
    if not arms:
        return None
    if len(arms) > len(COLOURS) and (panels := by_attack(results)) is not None:
        return panels
    with style():
        figure = new(COLUMN, 2.2)
        axes = figure.add_subplot()
        for number, (arm, look) in enumerate(zip(arms, looks(arms).values(), strict=True)):
            curve(axes, arm.series("asr"), arm.label, look, number)
            found = floor(arm, results)
            if found is not None and found.mean is not None:
                axes.axhline(100 * found.mean, color=look["color"], linestyle="--", linewidth=0.9)
        axes.plot([], [], color="#555555", linestyle="--", linewidth=0.9, label="floor (no poisoner)")
        axes.set_ylim(-3, 103)
        _rounds(axes, "attack success rate (%)", seeds(arms))
        _legend(figure, axes)
    return figure


def privacy_utility(results: Results) -> Figure | None:
    """Final accuracy against epsilon, one panel a unit and adversary, since epsilons of two kinds don't compare.

    Arms without a guarantee in a panel stand at its ∞, controls (no defense, clipping without noise) included.
    """
    arms = [a for a in comparable(results.arms()) if a.final("accuracy").mean is not None]
    # A panel in which nobody has a guarantee would have one tick, ∞: the table says that.
    panels = sorted({p for a in arms for p, said in a.guarantees().items() if isfinite(said.epsilon)})
    if not panels:
        return None
    columns = min(2, len(panels))
    rows = ceil(len(panels) / columns)
    with style():
        width = COLUMN if columns == 1 else PAGE
        figure = new(width, 2.1 * rows + 0.2)
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            _panel(axes, arms, panel)
            _chance(axes, results)
        for axes in grid[:, 0]:
            axes.set_ylabel("accuracy (%)")
            _percent(axes)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        simulated = any(s.simulated for a in arms for s in a.guarantees().values())
        kinds = "; hollow: noise simulated from a seed" if simulated else ""
        figure.suptitle(f"{_poisoner(arms)}{seeds(arms)}{kinds}", fontsize=7)
        _legend(figure, grid.flat[0])
    return figure


def _panel(axes: Axes, arms: list[Arm], panel: tuple[str, str]) -> None:
    """One (unit, adversary): log10(epsilon) and, past a gap, a band for ∞ in which arms stand side by side in order."""
    stated = {a.key: a.guarantees().get(panel) for a in arms}
    epsilon = {k: s.epsilon for k, s in stated.items() if s is not None and isfinite(s.epsilon)}
    positive = [e for e in epsilon.values() if e > 0]
    x = {e: log10(e or min(positive, default=1.0) / 10) for e in epsilon.values()}  # 0 stands a decade below
    at = {k: x[e] for k, e in epsilon.items()}
    low, high = min(at.values(), default=0.0), max(at.values(), default=0.0)
    span = max(high - low, 0.5)
    free = [a.key for a in arms if a.key not in at]
    start, width = high + 0.35 * span, 0.08 * span * max(len(free) - 1, 0)
    at |= {k: start + 0.08 * span * i for i, k in enumerate(free)}
    for arm, look in zip(arms, looks(arms).values(), strict=True):
        found, said = arm.final("accuracy"), stated[arm.key]
        simulated = said is not None and said.simulated and arm.key in epsilon
        error = None if found.half_width is None else 100 * found.half_width
        mean = 100 * (found.mean or 0.0)
        marker: dict[str, Any] = {"color": look["color"], "marker": look["marker"], "linestyle": "none"}
        marker["markerfacecolor"] = "white" if simulated else look["color"]
        axes.errorbar(at[arm.key], mean, yerr=error, label=arm.label, capsize=2, elinewidth=1, **marker)
    ticks = sorted(set(epsilon.values()))
    if len(ticks) > 8:
        ticks = [ticks[round(i * (len(ticks) - 1) / 7)] for i in range(8)]
    if free:
        axes.axvspan(start - 0.12 * span, start + width + 0.12 * span, color="#F3F3F3", linewidth=0, zorder=0)
    middle = [start + width / 2] if free else []
    axes.set_xticks([*(x[t] for t in ticks), *middle], [*(f"{t:.3g}" for t in ticks), *("∞" for _ in middle)])
    axes.set_xlim(low - 0.2 * span, (start + width if free else high) + 0.15 * span)
    axes.set_xlabel("ε (log scale)")
    axes.set_title(f"{panel[0]}-level, against {words(panel[1])}")


def leakage(results: Results) -> Figure | None:
    """Reconstructions by arm, one panel an adversary, with the trivial guesses beside each bar.

    Bars are PSNR for images, and the mean squared error for other inputs, where a shorter bar leaks more.
    """
    arms = comparable(results.arms())
    seen = {x: {m for a in arms for m in a.measures(x)} for x in sorted({x for a in arms for x in a.adversaries})}
    shown = [(x, m) for x, found in seen.items() for m in ("psnr_db", "mse") if m in found]
    if not shown:
        return None
    with style():
        names = [wrap(a.label, 24) for a in arms]
        pitch = 0.12 * (1 + max(n.count("\n") + 1 for n in names))
        alike = len({m for _, m in shown}) == 1
        figure = new(COLUMN, 0.55 + len(shown) * (0.3 + pitch * len(arms)) + (0 if alike else 0.2 * len(shown)))
        panels = figure.subplots(len(shown), 1, squeeze=False, sharex=alike)[:, 0]
        for axes, (adversary, metric) in zip(panels, shown, strict=True):
            _bars(axes, arms, adversary, metric)
        for axes, (_, metric) in zip(panels, shown, strict=True):
            axes.set_xlim(left=0)  # only now: it ends the growth of an axis that panels share
            axes.set_yticks(range(len(arms)), names)
            if axes is panels[-1] or not alike:
                axes.set_xlabel(AXES[metric])
        lacking = "".join(f"\n{wrap(said, 62)}" for x, m in shown for said in _unattacked(arms, x, m))
        figure.suptitle(f"{_poisoner(arms)}{seeds(arms)}{lacking}", fontsize=7)
        figure.set_size_inches(COLUMN, figure.get_size_inches()[1] + 0.12 * lacking.count("\n"))
        _legend(figure, max(panels, key=lambda p: len(p.get_legend_handles_labels()[1])))
    return figure


AXES = {"psnr_db": "PSNR of reconstructions (dB)", "mse": "MSE of reconstructions (lower leaks more)"}
GUESS_MARKERS = ("|", "x", "+", "d", "1")


def _bars(axes: Axes, arms: list[Arm], adversary: str, metric: str) -> None:
    drawn: set[str] = set()
    for row, (arm, look) in enumerate(zip(arms, looks(arms).values(), strict=True)):
        found = arm.leakage(metric, adversary) if metric in arm.measures(adversary) else estimate([])
        if found.mean is None or not isfinite(found.mean):
            text = {"—": "not attacked", "n/a": "n/a: nothing to attack"}.get(number(found, 1), number(found, 1))
            said = axes.annotate(text, (0, row), (3, 0), textcoords="offset points", va="center", fontsize=7)
            said.set_in_layout(False)
            continue
        axes.barh(row, found.mean, 0.66, color=look["color"], alpha=0.75, xerr=found.half_width, capsize=2)
        for name, marker in zip(GUESSES[metric], GUESS_MARKERS, strict=False):
            guess = arm.leakage(f"{metric}_{name}", adversary).mean
            if guess is not None:
                label = None if name in drawn else f"guess: {words(name)}"
                axes.plot(guess, row, marker, color="black", markersize=4.5, markerfacecolor="none", label=label)
                drawn.add(name)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_title(f"seen by {words(adversary)}")


def _unattacked(arms: list[Arm], adversary: str, metric: str) -> list[str]:
    found = [a for a in arms if metric in a.measures(adversary) and a.leakage(metric, adversary).state == "ok"]
    said = unattacked((a.label, "", a.unattacked(metric, adversary)) for a in found)
    return [f"{words(adversary)}: {x}" for x in said]


def _poisoner(arms: list[Arm]) -> str:
    return f"poisoner: {arms[0].poisoning}; " if arms[0].poisoned else ""


def _chance(axes: Axes, results: Results) -> None:
    level = chance(results)
    if level is not None:
        axes.axhline(100 * level, color="#555555", linestyle="--", linewidth=0.9, label="chance")


def _percent(axes: Axes) -> None:
    """An interval may reach beyond 100%, the axis doesn't."""
    axes.set_ylim(top=min(axes.get_ylim()[1], 102))


def _rounds(axes: Axes, ylabel: str, title: str) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("round")
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=7)


def _legend(figure: Figure, axes: Axes) -> None:
    """Below the figure, which grows by as much: however many arms there are, the panels keep their size."""
    found = sorted(zip(*axes.get_legend_handles_labels(), strict=True), key=lambda pair: pair[1] == "chance")
    if not found:
        return
    width, height = figure.get_size_inches()
    columns, labels, more = legend_shape([label for _, label in found], width)
    figure.set_size_inches(width, height + more)
    figure.legend([h for h, _ in found], labels, loc="outside lower center", ncols=columns)


def write(results: Results, folder: Path, suffix: str = "") -> list[Path]:
    """Write :func:`every` figure as ``folder/<name><suffix>.png`` and ``.pdf``."""
    return [p for name, figure in every(results) for p in save(figure, folder / f"{name}{suffix}")]
