"""``privbench report DIR``: the table and the figures of a run, a sweep or a results root."""

from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from privbench.benchmarks.results.cohorts import NAME, groups, leakage_by_clients
from privbench.benchmarks.results.cost_shares import NAME as SHARES
from privbench.benchmarks.results.cost_shares import cost_shares, share_table
from privbench.benchmarks.results.costs import NAME as COSTS
from privbench.benchmarks.results.costs import cost_table
from privbench.benchmarks.results.figures import NAMES, write
from privbench.benchmarks.results.frontier import NAME as FRONTIER
from privbench.benchmarks.results.frontier import draw as frontier
from privbench.benchmarks.results.frontier import frontier_table, panels
from privbench.benchmarks.results.inference import groups as inferences
from privbench.benchmarks.results.inference import inference_table
from privbench.benchmarks.results.inference_figures import EPSILON, empirical_epsilon
from privbench.benchmarks.results.leakage_curves import leakage_curves
from privbench.benchmarks.results.leakage_table import leakage_table
from privbench.benchmarks.results.load import Refusal, Results, load
from privbench.benchmarks.results.poisoned_records import NAME as RECORDS
from privbench.benchmarks.results.poisoned_records import curves, records_table
from privbench.benchmarks.results.poisoned_records import draw as by_records
from privbench.benchmarks.results.privacy import privacy
from privbench.benchmarks.results.published import published
from privbench.benchmarks.results.style import save, slug
from privbench.benchmarks.results.table import table
from privbench.benchmarks.results.tabular import Table


@dataclass(frozen=True)
class Report:
    """What a report wrote.

    Args:
        folder: where the files lie.
        table: the arms that could be averaged.
        files: all files written.
        refused: arms without a mean, and why.
        privacy: client-level mechanisms side by side, if there are several.
        leakage: what each adversary reconstructed, if anything was attacked.
        inference: what audits and membership inference found, if there were any.
        poisoned_records: success against the number of poisoned records, where that was swept.
        costs: what each defense takes beside none.
        published: published figures beside measured ones, where the experiment is a paper's.
    """

    folder: Path
    table: Table
    files: tuple[Path, ...]
    refused: tuple[Refusal, ...]
    privacy: Table | None = None
    leakage: Table | None = None
    published: Table | None = None
    inference: Table | None = None
    poisoned_records: Table | None = None
    costs: Table | None = None

    @property
    def status(self) -> int:
        """The exit status: 1 if an arm was refused."""
        return 1 if self.refused else 0


def report(path: str | Path, console: Console | None = None, mixed_revisions: bool = False) -> Report:
    """Write ``table.{txt,csv,tex}`` and ``figures/`` into a sweep's directory, else into ``report/`` there.

    Where there are several client-level mechanisms, ``privacy.{txt,csv,tex}`` is their table; where something was
    attacked, ``leakage.{txt,csv,tex}`` says how much was found, and where there are several epsilons and measures,
    ``frontier.{txt,csv,tex}`` has all of them; neither is printed. Complete arms are shown,
    the others are listed with their reason. The same results give the same bytes.

    Args:
        path: as for :func:`~.load.load`.
        console: where the table is printed; ``None`` prints nothing.
        mixed_revisions: as for :func:`~.load.load`.

    Raises:
        FileNotFoundError, MalformedError: as :func:`~.load.load`.
    """
    results = load(path, mixed_revisions)
    kept, refused = results.split()
    folder = results.path if results.kind == "sweep" else results.path / "report"
    folder.mkdir(exist_ok=True)
    shown = table(kept)
    shown = replace(shown, notes=(*shown.notes, *(f"REFUSED {r}" for r in refused)))
    compared, leaked = privacy(kept), leakage_table(kept)
    files = [*_texts(folder, "table", shown), *_texts(folder, "privacy", compared), *_texts(folder, "leakage", leaked)]
    beside = published(kept)
    inferred = inference_table(kept)
    files += [*_texts(folder, "published", beside), *_texts(folder, "inference", inferred)]
    files += _texts(folder, "frontier", frontier_table(kept))
    counted = records_table(kept)
    files += _texts(folder, "poisoned_records", counted)
    spent = cost_table(kept)
    files += [*_texts(folder, COSTS, spent), *_texts(folder, SHARES, share_table(kept))]
    files += _figures(kept, folder / "figures")
    made = Report(folder, shown, tuple(files), tuple(refused), compared, leaked, beside, inferred, counted, spent)
    if console is not None:
        _print(made, console, costs=bool(kept.repeats))
    return made


def _texts(folder: Path, name: str, shown: Table | None) -> list[Path]:
    """A table's three files; where there is nothing to show, those of an earlier report are removed."""
    files = [folder / f"{name}.{suffix}" for suffix in ("txt", "csv", "tex")]
    if shown is None:
        for file in files:
            file.unlink(missing_ok=True)
        return []
    for file, text in zip(files, (shown.text(), shown.csv(), shown.latex()), strict=True):
        file.write_text(text, encoding="utf-8", newline="\n")
    return files


def _figures(results: Results, folder: Path) -> list[Path]:
    """Figures by setup; those of an earlier report that have nothing to show any more are removed."""
    files: list[Path] = []
    used: set[str] = set()
    for number, (name, setup) in enumerate(results.setups()):
        suffix = f"-{slug(name)}" if name else ""
        suffix += f"-{number}" if suffix in used else ""
        used.add(suffix)
        files += write(setup, folder, suffix)
    for number, group in enumerate(groups(results)):
        figure = leakage_by_clients(group)
        files += save(figure, folder / (f"{NAME}-{number}" if number else NAME)) if figure else []
    for number, (_, group) in enumerate(inferences(results)):
        figure = empirical_epsilon(group)
        files += save(figure, folder / (f"{EPSILON}-{number}" if number else EPSILON)) if figure else []
    for name, figure in leakage_curves(results):
        number = sum(f.name.startswith(name) for f in files) // 2
        files += save(figure, folder / (f"{name}-{number}" if number else name))
    for number, lines in enumerate(curves(results)):
        files += save(by_records(lines), folder / (f"{RECORDS}-{number}" if number else RECORDS))
    for number, found in enumerate(panels(results)):
        files += save(frontier(found), folder / (f"{FRONTIER}-{number}" if number else FRONTIER))
    figure = cost_shares(results)
    files += save(figure, folder / SHARES) if figure else []
    for old in folder.glob("*"):
        if (
            old not in files
            and old.suffix in (".png", ".pdf")
            and old.name.startswith((*NAMES, NAME, EPSILON, FRONTIER, RECORDS, SHARES))
        ):
            old.unlink()
    return files


def _print(made: Report, console: Console, costs: bool) -> None:
    """Costs are printed where they are what the runs were repeated for."""
    tables = [made.table, made.privacy, made.published, made.inference, made.poisoned_records]
    for shown in filter(None, (*tables, made.costs if costs else None)):
        for block in shown.blocks(console.width):
            console.print(block)
        for note in shown.notes:
            style = "bold" if note.startswith("REFUSED") else ""
            console.print(note, markup=False, highlight=False, soft_wrap=True, style=style)
    figures = sum(f.suffix == ".png" for f in made.files)
    texts = ", ".join(f.name for f in made.files if f.parent == made.folder)
    text = f"{made.folder}: {texts}, {figures} figures in figures/ (PNG and PDF)"
    console.print(text, markup=False, highlight=False, soft_wrap=True)
