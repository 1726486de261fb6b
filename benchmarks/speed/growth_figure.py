"""The figure of a round's cost against clients and parameters."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from privbench.benchmarks.results.style import COLOURS, MARKERS, PAGE, new, save, style

if TYPE_CHECKING:
    from privbench.benchmarks.speed.growth import Line

GAP = 6.5
"""Points between two labels, from middle to middle."""


def draw(lines: "Sequence[Line]", stem: Path) -> list[Path]:
    """CPU seconds of one client and of the server on logarithmic axes; at the end of a line stands its exponent.

    Returns:
        The files that were written.
    """
    names = list(dict.fromkeys(line.arm for line in lines))
    along = list(dict.fromkeys(line.axis for line in lines))
    with style():
        figure = new(PAGE, 4.6)
        grid = figure.subplots(2, len(along), sharex="col", squeeze=False)
        for column, axis in zip(grid.T, along, strict=True):
            for axes, (place, who) in zip(column, (("client", "one client"), ("server", "server")), strict=True):
                for line in _told(lines, axis, place):
                    colour, marker = _look(names, line)
                    axes.plot(*_points(line, place), color=colour, marker=marker, label=line.arm)
                axes.set_xscale("log")
                axes.set_yscale("log")
                axes.margins(x=0.12)
                axes.set_ylabel(f"CPU seconds, {who}")
            column[-1].set_xlabel(f"number of {axis}")
        handles, labels = grid[-1][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        figure.suptitle("at the end of a line: its exponent, of the three largest points", fontsize=7)
        figure.draw_without_rendering()  # labels are moved apart where they stand on the page
        for column, axis in zip(grid.T, along, strict=True):
            for axes, place in zip(column, ("client", "server"), strict=True):
                _exponents(axes, [(line, _look(names, line)[0]) for line in _told(lines, axis, place)], place)
    return save(figure, stem)


def _told(lines: "Sequence[Line]", axis: str, place: str) -> "list[Line]":
    return [x for x in lines if x.axis == axis and x.told(place) and len(_points(x, place)[0])]


def _look(names: list[str], line: "Line") -> tuple[str, str]:
    index = names.index(line.arm)
    return COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]


def _points(line: "Line", place: str) -> tuple[list[int], list[float]]:
    index = 0 if place == "client" else 1
    kept = [(x, p[index]) for x, p in sorted(line.points.items()) if p[index] > 0]
    return [x for x, _ in kept], [y for _, y in kept]


def _exponents(axes: Axes, lines: "list[tuple[Line, str]]", place: str) -> None:
    """Write each line's exponent at its end; where several end at one place, one above the other."""
    ends: dict[int, list[tuple[float, float, str]]] = {}
    for line, colour in lines:
        if (slope := line.exponent(place)) is not None:
            x, y = _points(line, place)
            ends.setdefault(x[-1], []).append((y[-1], slope, colour))
    points = 72 / axes.figure.dpi
    for x, found in ends.items():
        found.sort()
        heights = np.array([axes.transData.transform((x, y))[1] for y, *_ in found]) * points
        for (y, slope, colour), up in zip(found, apart(heights) - heights, strict=True):
            where = {"xytext": (4, up), "textcoords": "offset points"}
            axes.annotate(f"{slope:.2f}", (x, y), color=colour, fontsize=6, va="center", **where)


def apart(heights: np.ndarray, gap: float = GAP) -> np.ndarray:
    """Heights at least ``gap`` apart with the least sum of squared moves (isotonic regression of what is to spare).

    Args:
        heights: ascending, of shape (n,).

    Returns:
        Ascending, of shape (n,).
    """
    steps = gap * np.arange(len(heights))
    blocks: list[list[float]] = []
    for free in heights - steps:
        blocks.append([free])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    return np.concatenate([np.full(len(b), np.mean(b)) for b in blocks] or [np.zeros(0)]) + steps
