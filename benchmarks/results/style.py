"""How figures look: column width of a paper, colours safe for colour-blind readers, files that repeat byte for byte."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from privbench.benchmarks.results.arms import Arm, Estimate
from privbench.benchmarks.results.load import Results

COLUMN, PAGE = 3.4, 7.0
"""Widths of a column and of a page of a two-column paper, in inches."""

# Okabe and Ito, Color Universal Design (2008), without their yellow, which vanishes on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that figures don't depend on the machine
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "pdf.fonttype": 42,  # TrueType: conferences refuse Type 3 fonts
    "savefig.dpi": 200,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw within this, so that a user's own matplotlib settings neither leak in nor change."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        yield


def new(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches; matplotlib gives it an Agg canvas, and pyplot never hears of it."""
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, stem: str | Path) -> list[Path]:
    """Write ``stem.png`` (200 dpi) and ``stem.pdf`` (vectors, fonts embedded). Equal figures give equal bytes."""
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.pdf")]
    with style():
        figure.savefig(paths[0], format="png", metadata={"Software": None})
        figure.savefig(paths[1], format="pdf", metadata={"CreationDate": None})
    return paths


def comparable(arms: Sequence[Arm]) -> list[Arm]:
    """Arms that differ in the defense alone: those without a poisoner, or with the first one if all are poisoned."""
    clean = [a for a in arms if not a.poisoned]
    return clean or [a for a in arms if a.poisoning == arms[0].poisoning]


def looks(arms: Sequence[Arm]) -> dict[str, dict[str, Any]]:
    """Colour, marker and line by arm key; the ninth arm repeats the first colour with another line and marker."""
    n, lines = len(COLOURS), ("-", "-.", ":")
    return {
        a.key: {
            "color": COLOURS[i % n],
            "marker": MARKERS[(i + i // n) % n],
            "linestyle": lines[(i // n) % len(lines)],
        }
        for i, a in enumerate(arms)
    }


def curve(axes: Axes, series: dict[int, Estimate], label: str, look: dict[str, Any], number: int) -> None:
    """A line through the means over rounds, in percent, with a band of the 95% t-interval."""
    rounds = [*series]
    means = [100 * (e.mean or 0.0) for e in series.values()]
    # A few markers a line, each line's elsewhere, so that lines on top of each other can be told apart.
    every = max(1, len(rounds) // 4)
    axes.plot(rounds, means, label=label, markevery=(number % every, every), markersize=3.5, **look)
    halves = [e.half_width for e in series.values()]
    if all(h is not None for h in halves):
        low = [m - 100 * (h or 0.0) for m, h in zip(means, halves, strict=True)]
        high = [m + 100 * (h or 0.0) for m, h in zip(means, halves, strict=True)]
        axes.fill_between(rounds, low, high, color=look["color"], alpha=0.18, linewidth=0)


def chance(results: Results) -> float | None:
    """Accuracy of guessing if all runs agree on it."""
    found = {r.chance for r in results.runs}
    return found.pop() if len(found) == 1 else None


def seeds(arms: Sequence[Arm]) -> str:
    """What the figure has to say about intervals."""
    counts = sorted({a.n for a in arms})
    if counts == [1]:
        return "n = 1 seed, no interval"
    return f"n = {' to '.join(map(str, sorted({counts[0], counts[-1]})))} seeds, 95% t-interval"


def words(name: str) -> str:
    """``server operator`` for ``server_operator``."""
    return name.replace("_", " ")


def legend_shape(labels: Sequence[str], width: float) -> tuple[int, list[str], float]:
    """Columns, wrapped labels and height in inches of a legend below a figure that is ``width`` inches wide."""
    columns = round(width / COLUMN) * (2 if max(map(len, labels)) <= 26 else 1)
    wrapped = [wrap(label, 26 if columns == 2 * round(width / COLUMN) else 56) for label in labels]
    rows = -(-len(labels) // columns)
    height = max(sum(label.count("\n") + 1 for label in wrapped[i : i + rows]) for i in range(0, len(labels), rows))
    return columns, wrapped, 0.15 * height + 0.02 * rows + 0.1


def slug(name: str) -> str:
    """``name`` as a part of a file's name."""
    return re.sub(r"[^\w.=-]+", "_", name).strip("_")[:80]


def wrap(text: str, width: int) -> str:
    """``text`` broken at spaces, and at underscores where a word is too long."""
    return fill(text.replace("_", "_ "), width, break_long_words=False).replace("_ ", "_").replace("_\n", "_\n")
