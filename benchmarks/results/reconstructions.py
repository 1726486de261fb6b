"""The figure of reconstructed images between their originals and what needs no attack."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from privbench.benchmarks.results.arms import Arm
from privbench.benchmarks.results.artifacts import Recovered, recovered
from privbench.benchmarks.results.load import Results
from privbench.benchmarks.results.style import PAGE, comparable, new, style, words, wrap

COLUMNS = 8
"""At most this many images a row: the first ones, in order of round and client, never the best."""


class Line(NamedTuple):
    """A row of the grid: images with their PSNR under them, or in place of images why there are none."""

    label: str
    images: np.ndarray | None
    psnr_db: np.ndarray | None = None
    bold: np.ndarray | None = None
    said: str = ""


def reconstructions(results: Results, adversary: str) -> Figure | None:
    """Originals, what ``adversary`` made of each arm's updates, and the trivial guesses, for the lowest seed.

    PSNR in dB stands under each image, bold where it is above that of every guess shown. Where arms were attacked on
    different victims (a defense may draw other batches), those with the same ones have their originals above and the
    guesses below them.
    ``None`` without images.
    """
    arms = [a for a in comparable(results.arms()) if adversary in a.adversaries]
    found = {a.key: recovered(a.runs[0], adversary, COLUMNS) for a in arms}
    shown = [f for f in found.values() if f is not None]
    if not shown or any(f.kind != "image" for f in shown):
        return None
    lines = list(_lines(arms, found, adversary))
    columns = max(len(f.originals) for f in shown)
    with style():
        cell = (PAGE - 1.3) / COLUMNS
        heights = [1.0 if line.images is not None else 0.45 for line in lines]
        width = 1.3 + cell * max(columns, 3)
        figure = new(width, 0.6 + (cell + 0.18) * sum(heights))
        grid = figure.subplots(len(lines), columns, squeeze=False, height_ratios=heights)
        for axes, line in zip(grid, lines, strict=True):
            _draw(axes, line)
        figure.suptitle(_title(arms, adversary, any(f.guesses for f in shown), width), fontsize=8)
    return figure


def title(arms: list[Arm], adversary: str) -> str:
    """Which attack, through whose eyes, which seed."""
    attack = arms[0].runs[0].choices.get("leakage") or "leakage"
    return f"{words(attack)}, from what {words(adversary)} sees; seed {arms[0].seeds[0]}"


def absence(arm: Arm, metric: str, adversary: str) -> str:
    """Why an arm has nothing to show."""
    state = arm.leakage(metric, adversary).state
    what = {"not_applicable": "n/a", "failed": "failed", "skipped": "skipped"}.get(state, "nothing recorded")
    reason = arm.reason(metric, adversary)
    return wrap(f"{what}: {reason}" if reason else what, 60)


def _title(arms: list[Arm], adversary: str, guesses: bool, width: float) -> str:
    explained = "PSNR in dB under each image"
    explained += "; guesses saw no gradient, bold is better than all of them" if guesses else ""
    return "\n".join(wrap(text, int(14 * width)) for text in (title(arms, adversary), explained))


def _lines(arms: list[Arm], found: dict[str, Recovered | None], adversary: str) -> Iterator[Line]:
    """Blocks of arms with the same victims."""
    blocks = _blocks(arms, found)
    for own, members in blocks:
        named = [a.label for a in members if found[a.key] is not None]
        several = f" and {len(named) - 1} more" if len(named) > 1 else ""
        whose = f" ({named[0]}{several})" if len(blocks) > 1 else ""
        yield Line(f"original{whose}", own.originals)
        for arm in members:
            got = found[arm.key]
            if got is None:
                yield Line(arm.label, None, said=absence(arm, "psnr_db", adversary))
                continue
            psnr, guessed = got.score(got.reconstructions), [got.score(g) for g in got.guesses.values()]
            bold = psnr > np.max(guessed, 0) if guessed else np.zeros(len(psnr), bool)
            yield Line(arm.label, got.reconstructions, psnr, bold)
        for name, x in own.guesses.items():
            yield Line(f"guess: {words(name)}{whose}", x, own.score(x))


def _blocks(arms: list[Arm], found: dict[str, Recovered | None]) -> list[tuple[Recovered, list[Arm]]]:
    """Arms with the same originals together, in the order of their first; one without any stands with its neighbour."""
    blocks: list[tuple[Recovered, list[Arm]]] = []
    last, early = None, []
    for arm in arms:
        got = found[arm.key]
        if got is not None:
            last = next((b for b in blocks if np.array_equal(b[0].originals, got.originals)), None)
            if last is None:
                last = (got, early)
                early = []
                blocks.append(last)
        (early if last is None else last[1]).append(arm)
    return blocks


def _draw(row: Any, line: Line) -> None:
    for axes in row:
        blank(axes)
    row[0].set_ylabel(wrap(line.label, 16), rotation=0, ha="right", va="center", labelpad=6)
    if line.images is None:
        said = row[0].annotate(line.said, (0, 0.5), xycoords="axes fraction", va="center")
        said.set_in_layout(False)  # it may reach over the empty cells beside it
        return
    for number, (axes, image) in enumerate(zip(row, line.images, strict=False)):
        _picture(axes, image)
        if line.psnr_db is not None:
            weight = "bold" if line.bold is not None and line.bold[number] else "normal"
            axes.set_xlabel(f"{line.psnr_db[number]:.1f} dB", fontsize=6.5, labelpad=2, fontweight=weight)


def blank(axes: Axes) -> None:
    """No ticks, no frame."""
    axes.patch.set_visible(False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _picture(axes: Axes, image: np.ndarray) -> None:
    """``(1, h, w)`` in grey or ``(3, h, w)`` in colour; other channel counts show the first one."""
    shown = image.transpose(1, 2, 0) if image.shape[0] == 3 else image[0]
    settings: dict[str, Any] = {} if shown.ndim == 3 else {"cmap": "gray", "vmin": 0, "vmax": 1}
    axes.imshow(np.clip(shown, 0, 1), interpolation="nearest", **settings)
