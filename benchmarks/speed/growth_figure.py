"""The figure of a round's cost against clients and parameters."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes

from privbench.benchmarks.results.style import COLOURS, MARKERS, PAGE, new, save, style

if TYPE_CHECKING:
    from privbench.benchmarks.speed.growth import Line


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
                for line in (x for x in lines if x.axis == axis and x.points and x.told(place)):
                    _line(axes, line, place, names.index(line.arm))
                axes.set_xscale("log")
                axes.set_yscale("log")
                axes.margins(x=0.12)
                axes.set_ylabel(f"CPU seconds, {who}")
            column[-1].set_xlabel(f"number of {axis}")
        handles, labels = grid[-1][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        figure.suptitle("at the end of a line: its exponent, of the three largest points", fontsize=7)
    return save(figure, stem)


def _line(axes: Axes, line: "Line", place: str, look: int) -> None:
    index = 0 if place == "client" else 1
    points = [(x, p[index]) for x, p in sorted(line.points.items()) if p[index] > 0]
    if not points:
        return
    colour, marker = COLOURS[look % len(COLOURS)], MARKERS[look % len(MARKERS)]
    axes.plot(*zip(*points, strict=True), color=colour, marker=marker, label=line.arm)
    if (slope := line.exponent(place)) is not None:
        place_of = {"xytext": (4, 0), "textcoords": "offset points"}
        axes.annotate(f"{slope:.2f}", points[-1], color=colour, fontsize=6, va="center", **place_of)
