"""A figure of how records are spread over clients."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from privbench.benchmarks.tasks.task import Task


def draw(task: Task, clients: int, seed: int, path: str | Path) -> list[Path]:
    """Training records by client and class as stacked bars.

    Args:
        task: to divide.
        clients, seed: as in :meth:`Task.split`.
        path: where to write, without or with a suffix, which is replaced.

    Returns:
        The files written: a PNG and a PDF.
    """
    data, classes = task.raw, task.spec.classes
    counts = torch.stack([torch.bincount(data.train.y[i], minlength=len(classes)) for i in task.split(clients, seed)])
    figure = Figure(figsize=(min(4 + 0.2 * clients, 16), 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    bottom = np.zeros(clients)
    for label, own in enumerate(counts.T.numpy()):
        axes.bar(np.arange(clients), own, bottom=bottom, width=0.9, label=classes[label], color=f"C{label % 10}")
        bottom += own
    axes.set(
        xlabel="client",
        ylabel="training records",
        title=f"{task.spec.name}, {type(task.partition).__name__}, seed {seed}",
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside right upper", title="class", fontsize="small", frameon=False, reverse=True)
    written = [Path(path).with_suffix(suffix) for suffix in (".png", ".pdf")]
    for file in written:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Without dates, equal counts give equal files.
        figure.savefig(file, dpi=200, metadata={"CreationDate": None} if file.suffix == ".pdf" else None)
    return written
