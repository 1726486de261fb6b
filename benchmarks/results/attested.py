"""The figure of attested clients: what each way to poison achieves under each defense, and what is refused."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from privbench.benchmarks.results.arms import Arm
from privbench.benchmarks.results.load import Results
from privbench.benchmarks.results.refusals import refusals, rounds
from privbench.benchmarks.results.style import COLOURS, PAGE, new, seeds, style, words
from privbench.benchmarks.results.table import floor

LIMITS = (
    "Refusal is assumed by the ideal-TEE model (software TEE: emulated, nothing is assured by hardware).\n"
    "Attestation shows which code and settings ran, not that data are good: who poisons data alone passes."
)
EVERY = 0.9
"""Share of its rounds from which an arm counts as refused: what is left of its update is not worth a bar."""


def attested_clients(results: Results) -> Figure | None:
    """Attack success rate by poisoner, a bar a defense, with its floor; refused arms say so.

    ``None`` without an arm of attested clients, or with less than two poisoners.

    Raises:
        Refused: if an arm can't be averaged.
    """
    arms = results.arms() if any(map(_attests, results.runs)) else []
    arms = [a for a in arms if a.poisoned and a.final("asr").mean is not None]
    defenses, poisonings = (list(dict.fromkeys(getattr(a, n) for a in arms)) for n in ("defense", "poisoning"))
    single = len({(a.defense, a.poisoning) for a in arms}) == len(arms)
    if len(poisonings) < 2 or not single:
        return None
    with style():
        figure = new(PAGE, 0.8 + len(poisonings) * (0.16 * len(defenses) + 0.14))
        axes = figure.add_subplot()
        height = 0.84 / len(defenses)
        for arm in arms:
            group, place = poisonings.index(arm.poisoning), defenses.index(arm.defense)
            row = group + (place - (len(defenses) - 1) / 2) * height
            _bar(axes, arm, row, height, COLOURS[place % len(COLOURS)])
            _floor(axes, arm, results, row, height)
        for place, defense in enumerate(defenses):
            axes.barh([0], [0], color=COLOURS[place % len(COLOURS)], label=defense)
        axes.barh([0], [0], color="white", edgecolor="#555555", hatch="////", linewidth=0.6, label="refused")
        axes.plot([], [], "|", color="black", markersize=8, markeredgewidth=1.2, label="floor (no poisoner)")
        axes.set_yticks(range(len(poisonings)), [words(p) for p in poisonings])
        axes.set_ylim(len(poisonings) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, 105)
        axes.set_xlabel("attack success rate (%)")
        axes.set_title(seeds(arms), fontsize=7)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        figure.supxlabel(LIMITS, fontsize=6.5, color="#333333")
    return figure


def _attests(run: Any) -> bool:
    return bool(((run.settings.get("defense") or {}).get("channel") or {}).get("attest_clients"))


def _bar(axes: Axes, arm: Arm, row: float, height: float, colour: str) -> None:
    found, stopped = arm.final("asr"), refusals(arm)
    value = 100 * (found.mean or 0.0)
    error = None if found.half_width is None else 100 * found.half_width
    whole = rounds(arm)
    out = any(n >= EVERY * whole for n in stopped.values())
    look: dict[str, Any] = {"color": "white", "edgecolor": colour, "hatch": "////"} if out else {"color": colour}
    axes.barh(row, value, 0.92 * height, linewidth=0.8, xerr=error, capsize=1.5, error_kw={"elinewidth": 0.8}, **look)
    said = [f"refused: {name}, {n} of {whole} rounds" for name, n in stopped.items()]
    text = "; ".join([*([] if out else [f"{value:.0f}"]), *said])
    end = value + (error or 0.0)
    axes.annotate(text, (end, row), (6 if out else 3, 0), textcoords="offset points", va="center", fontsize=6)


def _floor(axes: Axes, arm: Arm, results: Results, row: float, height: float) -> None:
    level = floor(arm, results)
    if level is not None and level.mean is not None:
        x = 100 * level.mean
        axes.plot([x, x], [row - 0.46 * height, row + 0.46 * height], color="black", linewidth=1.2)
