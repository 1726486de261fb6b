"""What an inversion leaves in a folder: arrays, a picture or a table, and a report."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from privbench.benchmarks.inversion.result import Inversion, raw
from privbench.benchmarks.measures import images
from privbench.benchmarks.measures.comparison import is_image
from privbench.benchmarks.results.style import COLOURS, PAGE, new, save, style, wrap

MOST = 8
"""Records in a picture: the first ones, never the best."""


def write(found: Inversion, folder: Path, settings: dict[str, Any]) -> list[Path]:
    """Write all records to ``reconstructions.npz``, a picture (images, signals) or CSV (tables), and ``report.json``.

    Args:
        settings: for the report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"x": found.x.numpy(), "raw": found.raw.numpy(), "y": found.y.numpy()}
    if found.truth is not None:
        arrays |= {"originals": raw(found.public, found.truth.x).numpy(), "labels": found.truth.y.numpy()}
    written = [folder / "reconstructions.npz"]
    np.savez_compressed(written[0], allow_pickle=False, **arrays)
    if len(found.public.shape) == 1:
        written.append(_table(found, folder / "reconstructions.csv"))
    else:
        written += save(picture(found), folder / "reconstructions")
    return [*written, report(folder, {**found.report, "settings": settings})]


def report(folder: Path, fields: dict[str, Any]) -> Path:
    """``report.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.json"
    path.write_text(json.dumps(_plain(fields), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return path


def _plain(value: Any) -> Any:
    """What JSON has: an attack of the user's may have any fields."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    plain = value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return value if plain else str(value)


def picture(found: Inversion) -> Figure:
    """Of the first records: images in a grid, or signals as lines; beside the originals where there is truth."""
    with style():
        return _grid(found) if is_image(found.public) else _lines(found)


def _grid(found: Inversion) -> Figure:
    rows: list[tuple[str, Tensor, list[str]]] = []
    made = found.raw[:MOST]
    labels = [f"label {v:g}" for v in found.y[:MOST].tolist()]
    if found.truth is not None:
        original = raw(found.public, found.truth.x)[:MOST]
        mosaic = images.baselines(original)["mosaic"]
        rows.append(("original", original, [f"label {v:g}" for v in found.truth.y[:MOST].tolist()]))
        rows.append(("reconstruction", made, [f"{v:.1f} dB" for v in images.psnr(made, original).tolist()]))
        rows.append(
            ("own 4x4 mosaic (trivial)", mosaic, [f"{v:.1f} dB" for v in images.psnr(mosaic, original).tolist()])
        )
    else:
        rows.append(("reconstruction", made, labels))
    columns, cell = len(made), (PAGE - 1.3) / MOST
    figure = new(1.3 + cell * max(columns, 3), 0.4 + (cell + 0.2) * len(rows))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, shown, captions) in zip(grid, rows, strict=True):
        for axes, image, caption in zip(line, shown.numpy(), captions, strict=True):
            _image(axes, image)
            axes.set_xlabel(caption, fontsize=6.5, labelpad=2)
        line[0].set_ylabel(wrap(name, 16), rotation=0, ha="right", va="center", labelpad=6)
    return figure


def _image(axes: Axes, image: np.ndarray) -> None:
    """``(3, h, w)`` in colour; of any other number of channels the first, in grey."""
    colour = image.shape[0] == 3
    settings: dict[str, Any] = {} if colour else {"cmap": "gray", "vmin": 0, "vmax": 1}
    axes.imshow(image.transpose(1, 2, 0) if colour else image[0], interpolation="nearest", **settings)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _lines(found: Inversion) -> Figure:
    made = found.raw[:MOST].numpy()
    original = None if found.truth is None else raw(found.public, found.truth.x)[:MOST].numpy()
    channels = min(made.shape[1], 4)
    figure = new(PAGE, 0.5 + 1.2 * len(made))
    grid = figure.subplots(len(made), channels, squeeze=False, sharex=True)
    for record, line in enumerate(grid):
        for channel, axes in enumerate(line):
            if original is not None:
                axes.plot(original[record, channel], color=COLOURS[0], label="original")
            axes.plot(made[record, channel], color=COLOURS[1], linestyle="--", label="reconstruction")
            if channels > 1 and record == 0:
                axes.set_title(f"channel {channel}")
        line[0].set_ylabel(f"label {found.y[record].item():g}")
    for axes in grid[-1]:
        axes.set_xlabel("sample")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


def _table(found: Inversion, path: Path) -> Path:
    """One row a record: ``record, what, label, feature_0, ...`` in raw units."""
    rows = [
        (k, "reconstruction", y, x) for k, (y, x) in enumerate(zip(found.y.tolist(), found.raw.tolist(), strict=True))
    ]
    if found.truth is not None:
        true = zip(found.truth.y.tolist(), raw(found.public, found.truth.x).tolist(), strict=True)
        rows += [(k, "original", y, x) for k, (y, x) in enumerate(true)]
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["record", "what", "label", *(f"feature_{i}" for i in range(found.public.shape[0]))])
        for record, what, label, x in sorted(rows, key=lambda r: (r[0], r[1])):
            table.writerow([record, what, f"{label:g}", *(f"{v:.6g}" for v in x)])
    return path
