"""Progress on the terminal: a live bar where there is one, a line a run elsewhere."""

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from privbench.benchmarks.experiment import Prepared

SHOWN = ("accuracy", "asr")


class Progress:
    """Shows one run; quiet but for its last line where standard error isn't a terminal.

    Args:
        label: what the run is, for people.
    """

    def __init__(self, label: str):
        self.console = Console(stderr=True, soft_wrap=True)
        self._label, self._task, self._bar = label, None, None

    def start(self, prepared: "Prepared", done: int) -> None:
        """Begin after ``done`` finished rounds."""
        if not self.console.is_terminal:
            return
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )
        total = prepared.experiment.federation.rounds
        self._task = self._bar.add_task(self._label, total=total, completed=done, shown="")
        self._bar.start()

    def round(self, number: int, rows: list[dict[str, Any]]) -> None:
        """Advance to ``number`` finished rounds."""
        if self._bar is None or self._task is None:
            return
        shown = "  ".join(f"{r['metric']} {r['value']:.3f}" for r in rows if r["metric"] in SHOWN)
        self._bar.update(self._task, completed=number)
        if shown:
            self._bar.update(self._task, shown=shown)

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
