"""The figure of a round's cost against clients and parameters."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from privbench.benchmarks.results.style import COLOURS, MARKERS, PAGE, new, save, style

if TYPE_CHECKING:
    from privbench.benchmarks.speed.growth import Line


def draw(lines: "Sequence[Line]", stem: Path) -> list[Path]:
    """CPU seconds of one client and of the server, on logarithmic axes; the legend has the exponents.

    Returns:
        The files that were written.
    """
    axes_of = list(dict.fromkeys(line.axis for line in lines))
    names = list(dict.fromkeys(line.arm for line in lines))
    with style():
        figure = new(PAGE, 4.2)
        grid = figure.subplots(2, len(axes_of), sharex="col", squeeze=False)
        for column, axis in enumerate(axes_of):
            for row, place in enumerate(("client", "server")):
                axes = grid[row][column]
                for line in (x for x in lines if x.axis == axis and x.points):
                    look, slope = names.index(line.arm), line.exponent(place)
                    label = line.arm if slope is None else f"{line.arm} ({slope:.2f})"
                    points = [(x, p[row]) for x, p in sorted(line.points.items()) if p[row] > 0]
                    axes.plot(*zip(*points, strict=True), color=COLOURS[look], marker=MARKERS[look], label=label)
                axes.set_xscale("log")
                axes.set_yscale("log")
                axes.set_ylabel(f"CPU seconds, {'one client' if place == 'client' else 'server'}")
                axes.legend(fontsize=5.5, title="(exponent)", title_fontsize=5.5)
            grid[1][column].set_xlabel(f"number of {axis}")
    return save(figure, stem)
