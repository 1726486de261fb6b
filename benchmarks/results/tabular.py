"""How a table looks: text for a terminal, CSV with full precision, LaTeX with booktabs; and how a mean is written."""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context
from math import isinf

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from privbench.benchmarks.results.arms import Estimate


@dataclass(frozen=True)
class Table:
    """Arms as text.

    Args:
        headers: of the columns, in order.
        rows: cells by row; a cell may have several lines.
        notes: what a reader has to know beside the numbers.
        records: the same arms with full precision, one mapping an arm; all have the same keys.
    """

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    records: tuple[dict[str, object], ...]

    def text(self, width: int = 200) -> str:
        """For a terminal or a text file: the blocks below each other, then the notes."""
        file = io.StringIO()
        console = Console(file=file, width=width, color_system=None, legacy_windows=False)
        for block in self.blocks(width):
            console.print(block)
        return "\n".join([*(line.rstrip() for line in file.getvalue().splitlines()), *self.notes]) + "\n"

    def blocks(self, width: int) -> list[RichTable]:
        """The table in as many parts as ``width`` characters ask for; each begins with what names the arm."""
        keys = self.headers.index("n") + 1
        columns = [[h, *(r[i] for r in self.rows)] for i, h in enumerate(self.headers)]
        wide = [max(len(line) for cell in c for line in cell.splitlines() or [""]) + 3 for c in columns]
        parts, room = [[*range(keys)]], width - sum(wide[:keys])
        for i in range(keys, len(columns)):
            if wide[i] > room and len(parts[-1]) > keys:
                parts.append([*range(keys)])
                room = width - sum(wide[:keys])
            parts[-1].append(i)
            room -= wide[i]
        return [self._block(p) for p in parts]

    def _block(self, columns: list[int]) -> RichTable:
        table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
        for i in columns:
            words = i < self.headers.index("n") or self.headers[i] == "privacy"
            table.add_column(Text(self.headers[i]), justify="left" if words else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(row[i]) for i in columns))
        return table

    def csv(self) -> str:
        """One row an arm, numbers with full precision."""
        if not self.records:
            return ""
        file = io.StringIO()
        writer = csv.DictWriter(file, fieldnames=[*self.records[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.records)
        return file.getvalue()

    def latex(self) -> str:
        """A ``tabular`` for ``\\usepackage{booktabs}``; the notes are comments above it."""
        lines = [
            *(f"% {n}" for n in self.notes),
            rf"\begin{{tabular}}{{ll{'r' * (len(self.headers) - 2)}}}",
            r"\toprule",
        ]
        lines += [_row(self.headers), r"\midrule", *(_row(r) for r in self.rows), r"\bottomrule", r"\end{tabular}"]
        return "\n".join(lines) + "\n"


def _row(cells: Iterable[str]) -> str:
    return " & ".join(escape(" ".join(c.splitlines())) for c in cells) + r" \\"


ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "∞": r"$\infty$",
    "ε": r"$\varepsilon$",
    "δ": r"$\delta$",
    "—": "---",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def escape(text: str) -> str:
    """``text`` as LaTeX source that prints it."""
    return "".join(ESCAPES.get(c, c) for c in text)


def at_most(value: float, digits: int = 3) -> str:
    """An upper bound, such as epsilon, to so many significant digits: rounded up, since it holds for nothing less."""
    if isinf(value):
        return "∞"
    return f"{float(Context(prec=digits, rounding=ROUND_CEILING).create_decimal(repr(value))):.{digits}g}"


def number(found: Estimate | None, digits: int, scale: float = 1.0) -> str:
    """``85.3 ± 1.2``; the half-width is that of the 95% t-interval over seeds."""
    if found is None or found.state == "absent":
        return "—"
    if found.mean is None:
        return "n/a" if found.state == "not_applicable" else found.state
    if isinf(found.mean):
        return "∞"
    half = "" if found.half_width is None else f" ± {scale * found.half_width:.{digits}f}"
    return f"{scale * found.mean:.{digits}f}{half}"


def percent(found: Estimate | None) -> str:
    return number(found, 1, 100.0)
