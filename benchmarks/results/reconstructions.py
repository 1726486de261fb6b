"""The figure of reconstructed images beside their originals."""

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from privbench.benchmarks.results.arms import Arm
from privbench.benchmarks.results.load import Results
from privbench.benchmarks.results.read import MalformedError
from privbench.benchmarks.results.runs import Run
from privbench.benchmarks.results.style import PAGE, comparable, new, slug, style, words, wrap

COLUMNS = 8
"""At most this many images a row: the first ones, in order of round and client, never the best."""
NAME = re.compile(r"leakage_r(\d+)_c(-?\d+)_(.+)\.npz")


@dataclass(frozen=True)
class Images:
    """What one attack recovered, over its victims.

    Args:
        originals, reconstructions: ``(n, c, h, w)`` or ``(n, h, w)``, raw, in [0, 1].
        psnr_db: ``(n,)``.
    """

    originals: np.ndarray
    reconstructions: np.ndarray
    psnr_db: np.ndarray


def images(run: Run, adversary: str) -> Images | None:
    """The first :data:`COLUMNS` images of ``run``'s artifacts; ``None`` without any, or where inputs are no images.

    Raises:
        MalformedError: if an artifact isn't what its name says.
    """
    named = ((p, NAME.fullmatch(p.name)) for p in (run.path / "artifacts").glob("leakage_*.npz"))
    found = [(int(m[1]), int(m[2]), p) for p, m in named if m is not None and slug(m[3]) == slug(adversary)]
    read = [_read(p) for *_, p in sorted(found)]
    parts = [p for p in read if p is not None]
    if not parts or any(
        p.originals.ndim not in (3, 4) or p.originals.shape[1:] != parts[0].originals.shape[1:] for p in parts
    ):
        return None
    joined = (
        np.concatenate([getattr(p, a) for p in parts])[:COLUMNS] for a in ("originals", "reconstructions", "psnr_db")
    )
    return Images(*joined)


def _read(path: Path) -> Images | None:
    """``None`` for signals and tables, which have no PSNR."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if {"originals", "reconstructions", "psnr_db"} - {*file.files} == {"psnr_db"} and "labels" in file.files:
                return None
            read = Images(file["originals"], file["reconstructions"], file["psnr_db"])
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise MalformedError(path, 1, f"not an archive of originals, reconstructions and psnr_db ({error})") from None
    if read.originals.shape != read.reconstructions.shape or read.psnr_db.shape != read.originals.shape[:1]:
        raise MalformedError(path, 1, "originals, reconstructions and psnr_db differ in shape")
    return read


def reconstructions(results: Results, adversary: str) -> Figure | None:
    """Originals above what ``adversary`` made of each arm's updates, for the lowest seed, PSNR in dB under each image.

    Where arms were attacked on different victims (a defense may draw other batches), each has its originals above it.
    """
    arms = [a for a in comparable(results.arms()) if adversary in a.adversaries]
    found = {a.key: images(a.runs[0], adversary) for a in arms}
    shown = [i for i in found.values() if i is not None]
    if not shown:
        return None
    common = all(np.array_equal(i.originals, shown[0].originals) for i in shown)
    rows: list[tuple[str, Arm | None, Images | None]] = [("original", None, shown[0])] if common else []
    for arm in arms:
        got = found[arm.key]
        if not common and got is not None:
            rows.append((f"original ({arm.label})", None, got))
        rows.append((arm.label, arm, got))
    columns = max(len(i.psnr_db) for i in shown)
    with style():
        cell = (PAGE - 1.3) / COLUMNS
        heights = [1.0 if got is not None else 0.45 for *_, got in rows]
        figure = new(1.3 + cell * max(columns, 4), 0.4 + (cell + 0.18) * sum(heights))
        grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
        for line, (label, arm, got) in zip(grid, rows, strict=True):
            for axes in line:
                _blank(axes)
            line[0].set_ylabel(wrap(label, 16), rotation=0, ha="right", va="center", labelpad=6)
            if got is None:
                said = line[0].annotate(_absence(arm, adversary), (0, 0.5), xycoords="axes fraction", va="center")
                said.set_in_layout(False)  # it may reach over the empty cells beside it
                continue
            for axes, image, psnr in zip(
                line, got.originals if arm is None else got.reconstructions, got.psnr_db, strict=False
            ):
                _draw(axes, image)
                if arm is not None:
                    axes.set_xlabel(f"{psnr:.1f} dB" if np.isfinite(psnr) else "∞ dB", fontsize=6.5, labelpad=2)
        attack = arms[0].runs[0].choices.get("leakage") or "leakage"
        figure.suptitle(f"{words(attack)}, from what {words(adversary)} sees; seed {arms[0].seeds[0]}", fontsize=8)
    return figure


def _absence(arm: Arm | None, adversary: str) -> str:
    if arm is None:
        return ""
    state = arm.leakage("psnr_db", adversary).state
    what = {"not_applicable": "n/a", "failed": "failed", "skipped": "skipped"}.get(state, "no images recorded")
    reason = arm.reason("psnr_db", adversary)
    return wrap(f"{what}: {reason}" if reason else what, 60)


def _blank(axes: Axes) -> None:
    axes.patch.set_visible(False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw(axes: Axes, image: np.ndarray) -> None:
    """``(h, w)``, ``(1, h, w)`` in grey or ``(3, h, w)`` in colour; other channel counts show the first one."""
    if image.ndim == 3:
        image = image.transpose(1, 2, 0) if image.shape[0] == 3 else image[0]
    settings: dict[str, Any] = {} if image.ndim == 3 else {"cmap": "gray", "vmin": 0, "vmax": 1}
    axes.imshow(np.clip(image, 0, 1), interpolation="nearest", **settings)
