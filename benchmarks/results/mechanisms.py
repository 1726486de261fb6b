"""The figure of client-level mechanisms: what the same epsilon costs in accuracy, and in noise, by who adds it."""

from math import inf, sqrt

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from privbench.benchmarks.results.arms import Arm
from privbench.benchmarks.results.load import Results
from privbench.benchmarks.results.privacy import ADVERSARIES, Mechanism, mechanisms, reference
from privbench.benchmarks.results.style import PAGE, chance, comparable, looks, new, seeds, style, wrap
from privbench.benchmarks.results.tabular import at_most


def noise_mechanisms(results: Results) -> Figure | None:
    """Final accuracy, and the noise on the released mean measured against theory, one row an arm.

    ``None`` for less than two mechanisms.

    Raises:
        Refused: if an arm can't be averaged.
    """
    arms = [a for a in comparable(results.arms()) if a.final("accuracy").mean is not None] if results.runs else []
    arms = [a for a in arms if all(unit == "client" for unit, _ in a.guarantees())]
    found = mechanisms(arms)
    if len(found) < 2:
        return None
    with style():
        figure = new(PAGE, 0.95 + 0.42 * len(arms))
        left, right = figure.subplots(1, 2, sharey=True)
        _accuracy(left, arms, results)
        _noise(right, arms, found)
        left.set_yticks(range(len(arms)), [_named(a) for a in arms])
        left.set_ylim(len(arms) - 0.5, -0.5)
        poisoner = f"poisoner: {arms[0].poisoning}; " if arms[0].poisoned else ""
        handles = [h for axes in (left, right) for h, _ in zip(*axes.get_legend_handles_labels(), strict=True)]
        figure.legend(handles, [h.get_label() for h in handles], loc="outside lower center", ncols=3)
        figure.suptitle(f"{poisoner}{seeds(arms)}", fontsize=7)
    return figure


def _named(arm: Arm) -> str:
    """The arm, and its epsilon against each adversary."""
    said = arm.guarantees()
    values = [s.epsilon if (s := said.get(("client", a))) else inf for a in ADVERSARIES]
    return f"{wrap(arm.label, 34)}\nε: {at_most(values[0])} operator, {at_most(values[1])} recipient"


def _accuracy(axes: Axes, arms: list[Arm], results: Results) -> None:
    for row, (arm, look) in enumerate(zip(arms, looks(arms).values(), strict=True)):
        found = arm.final("accuracy")
        error = None if found.half_width is None else 100 * found.half_width
        marker = {k: look[k] for k in ("color", "marker")}
        axes.errorbar(100 * (found.mean or 0.0), row, xerr=error, linestyle="none", capsize=2, elinewidth=1, **marker)
    level = chance(results)
    if level is not None:
        axes.axvline(100 * level, color="#555555", linestyle="--", linewidth=0.9, label="chance")
    axes.set_xlim(0, 102)
    axes.set_xlabel("accuracy (%)")
    axes.set_title("utility")


def _noise(axes: Axes, arms: list[Arm], found: dict[str, Mechanism]) -> None:
    """Measured over theory, on a log scale; an arrow from central to local noise says how much more it is."""
    axes.set_xscale("log")
    for row, (arm, look) in enumerate(zip(arms, looks(arms).values(), strict=True)):
        own = found.get(arm.key)
        if own is None:
            axes.text(0.03, row, "no noise", transform=axes.get_yaxis_transform(), va="center", fontsize=7)
            continue
        axes.plot(own.theory, row, "|", color="black", markersize=13, markeredgewidth=1.2)
        marker = {k: look[k] for k in ("color", "marker")}
        low, high = own.interval
        error = [[own.measured - low], [high - own.measured]]
        axes.errorbar(own.measured, row, xerr=error, linestyle="none", capsize=2, elinewidth=1, **marker)
        central = reference(own, found.values())
        if own.by == "local" and central is not None:
            _factor(axes, own, central, row)
    values = [m.theory for m in found.values()]
    axes.set_xlim(min(values) / 1.6, max(values) * 1.6)
    axes.set_xlabel("std on each coordinate (log scale)")
    axes.set_title("noise on the released mean")
    _ticks(axes)
    axes.plot([], [], "|", color="black", markersize=10, markeredgewidth=1.2, label="noise by theory")
    axes.plot([], [], "o", color="#555555", label="noise measured, 95% interval")


def _factor(axes: Axes, own: Mechanism, central: Mechanism, row: int) -> None:
    arrow = {"arrowstyle": "->", "linewidth": 0.9, "color": "#555555"}
    axes.annotate("", xy=(own.theory / 1.06, row), xytext=(central.theory, row), arrowprops=arrow)
    axes.plot([central.theory] * 2, [row - 0.18, row + 0.18], color="#555555", linewidth=0.9)
    text = f"\u00d7 {own.measured / central.measured:.2f}  (√{own.cohort:g} = {sqrt(own.cohort):.2f})"
    if central.amplified:
        text += "\nmixes adversaries: central is amplified by sampling"
    middle = sqrt(own.theory * central.theory)
    axes.annotate(text, (middle, row), (0, 3), textcoords="offset points", ha="center", va="bottom", fontsize=6.5)


def _ticks(axes: Axes) -> None:
    """Labels at 1, 2, 3 and 5 of each decade: the range is often less than one."""
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 3.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(FixedLocator([]))
    axes.xaxis.set_minor_formatter(NullFormatter())
