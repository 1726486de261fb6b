"""The figure of leakage against the number of clients a round: it joins setups that differ in participation alone."""

from dataclasses import replace
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from privbench.benchmarks.build import canonical
from privbench.benchmarks.results.arms import Arm
from privbench.benchmarks.results.load import Results
from privbench.benchmarks.results.style import (
    COLOURS,
    MARKERS,
    PAGE,
    comparable,
    legend_shape,
    new,
    seeds,
    style,
    words,
)

NAME = "leakage_by_clients"
GUESS = "best trivial guess"


def groups(results: Results) -> list[Results]:
    """Results that differ in participation, defense and poisoning alone, where there are two participations or more.

    Raises:
        Refused: if an arm can't be averaged.
    """
    found: dict[str, list[Arm]] = {}
    for arm in results.arms():
        found.setdefault(_key(arm), []).append(arm)
    several = [arms for arms in found.values() if len({_clients(a) for a in arms} - {None}) > 1]
    return [replace(results, runs=tuple(r for a in arms for r in a.runs)) for arms in several]


def leakage_by_clients(results: Results) -> Figure | None:
    """PSNR of reconstructions by clients a round, a line for each adversary and a panel for each defense.

    The dashed line is the best trivial guess, the best over the adversaries: one that seeks the records of several
    clients at once also has several guesses. ``None`` without two numbers of clients or without images.
    """
    arms = [a for a in comparable(results.arms()) if _clients(a) is not None]
    shown = [a for a in arms if any(_psnr(a, x) is not None for x in a.adversaries)]
    if len({_clients(a) for a in shown}) < 2:
        return None
    panels: dict[str, list[Arm]] = {}
    for arm in shown:
        panels.setdefault(_defense(arm), []).append(arm)
    adversaries = sorted({x for a in shown for x in a.adversaries}, key=_order)
    with style():
        figure = new(PAGE, 2.4)
        grid = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (title, members) in zip(grid, panels.items(), strict=True):
            members.sort(key=lambda a: _clients(a) or 0.0)
            for number, adversary in enumerate(adversaries):
                _line(axes, members, adversary, number)
            _guess(axes, members)
            axes.set_title(title)
            axes.set_xlabel("clients a round")
        _ticks(grid[0], sorted({_clients(a) or 0.0 for a in shown}))
        grid[0].set_ylabel("PSNR of reconstructions (dB)")
        grid[0].set_ylim(bottom=0)
        figure.suptitle(seeds(shown), fontsize=7)
        found = sorted(zip(*grid[0].get_legend_handles_labels(), strict=True), key=lambda pair: pair[1] == GUESS)
        handles, labels = [h for h, _ in found], [label for _, label in found]
        columns, wrapped, more = legend_shape(labels, PAGE)
        figure.set_size_inches(PAGE, 2.4 + more)
        figure.legend(handles, wrapped, loc="outside lower center", ncols=columns)
    return figure


def _key(arm: Arm) -> str:
    settings = {k: v for k, v in arm.runs[0].settings.items() if k not in ("defense", "poisoning")}
    federation = {k: v for k, v in (settings.get("federation") or {}).items() if k != "participation"}
    return canonical({**settings, "federation": federation})


def _clients(arm: Arm) -> float | None:
    """Clients that took part in a round, on average over rounds and seeds."""
    found = [n for r in arm.runs for n in r.series("participants").values()]
    return fmean(found) if found else None


def _defense(arm: Arm) -> str:
    return f"{arm.defense} (software TEE)" if "software TEE" in arm.more else arm.defense


def _order(adversary: str) -> tuple[str, int]:
    """Operators without colluders first, then by how many there are."""
    base, _, several = adversary.partition(" + ")
    return ("" if base == "server_operator" else base, int(several.split()[0]) if several else 0)


def _psnr(arm: Arm, adversary: str) -> float | None:
    return arm.leakage("psnr_db", adversary).mean if "psnr_db" in arm.measures(adversary) else None


def _line(axes: Axes, arms: list[Arm], adversary: str, number: int) -> None:
    found = [(_clients(a), a.leakage("psnr_db", adversary)) for a in arms if _psnr(a, adversary) is not None]
    halves = [e.half_width for _, e in found if e.half_width is not None]
    axes.errorbar(
        [n or 0.0 for n, _ in found],
        [e.mean or 0.0 for _, e in found],
        yerr=halves if halves and len(halves) == len(found) else None,
        color=COLOURS[number % len(COLOURS)],
        marker=MARKERS[number % len(MARKERS)],
        markersize=max(3.0, 7.0 - 1.2 * number),  # lines may coincide: the markers stay visible inside each other
        capsize=2,
        label=words(adversary),
    )


def _guess(axes: Axes, arms: list[Arm]) -> None:
    points = []
    for arm in arms:
        best = [b[1].mean for x in arm.adversaries if (b := arm.best_baseline("psnr_db", x)) and b[1].mean is not None]
        points += [(_clients(arm) or 0.0, max(best))] if best else []
    clients, values = [n for n, _ in points], [v for _, v in points]
    axes.plot(clients, values, color="#555555", linestyle="--", label=GUESS)


def _ticks(axes: Axes, clients: list[float]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(clients, [f"{n:.3g}" for n in clients])
    axes.xaxis.set_minor_locator(NullLocator())
