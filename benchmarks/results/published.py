"""Published figures beside measured ones, for experiments that repeat a paper's."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from privbench.benchmarks.build import require
from privbench.benchmarks.results.arms import Arm, Estimate, estimate
from privbench.benchmarks.results.durability import durability
from privbench.benchmarks.results.load import Results
from privbench.benchmarks.results.style import words
from privbench.benchmarks.results.tabular import Table

PEAK = "asr_peak"
"""The largest attack success rate of any round: of a table of results, not of one round."""

SPREAD = "a ± b: mean and standard deviation over attacks, or over seeds where nobody attacks."


@dataclass(frozen=True)
class Published:
    """One published figure; it changes no number of a run.

    Args:
        metric: this suite's name of it.
        value: as published, in the metric's unit.
        spread: the published standard deviation, if there is one.
        of: what it is a figure of, in words, with whatever differs from the run.
        source: paper and table.
        defense: only beside arms of this defense; ``None``: beside all.
    """

    metric: str
    value: float
    of: str
    source: str
    spread: float | None = None
    defense: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.metric), "metric", self.metric, "a metric's name, such as psnr_db")
        require(self.spread is None or self.spread >= 0, "spread", self.spread, "at least 0, or null")


def published(results: Results) -> Table | None:
    """Measured beside reported, one row an arm, adversary and figure; ``None`` without published figures.

    Measured is the mean and the standard deviation over all attacks of an arm, as papers state theirs over images; one
    failed attack leaves no number.
    """
    rows = []
    for a in results.arms():
        figures = _stated(a)
        peak = durability(a).peak if any(f.metric == PEAK for f in figures) else estimate([])
        rows += [(a, f, x, peak) for f in figures for x in _seen(a, f.metric, peak)]
    if not rows:
        return None
    poisoned = any(arm.poisoned for arm, *_ in rows)
    who = ("defense", "poisoning") if poisoned else ("defense",)
    headers = (*who, "setting", "n", "metric", "seen by", "measured", "attacks", "reported", "difference")
    cells, records = [], []
    for arm, figure, adversary, peak in rows:
        values, done, made = _measured(arm, figure.metric, adversary, peak)
        found = mean(values) if values else None
        spread = stdev(values) if len(values) > 1 else None
        difference = None if found is None else found - figure.value
        cells.append(
            (
                arm.defense,
                *((arm.poisoning if arm.poisoned else "—",) if poisoned else ()),
                "\n".join(arm.more),
                f"n={arm.n}",
                figure.metric,
                words(adversary) if adversary else "—",
                _shown(found, spread),
                f"{done} of {made}",
                _shown(figure.value, figure.spread),
                "—" if difference is None else f"{difference:+.{4 if abs(figure.value) < 1 else 2}f}",
            )
        )
        records.append(
            {
                "arm": arm.label,
                "seeds": " ".join(map(str, arm.seeds)),
                "metric": figure.metric,
                "adversary": adversary,
                "measured": found,
                "measured_std": spread,
                "attacks": made,
                "attacks_done": done,
                "reported": figure.value,
                "reported_std": figure.spread,
                "of": figure.of,
                "source": figure.source,
            }
        )
    return Table(
        headers,
        tuple(cells),
        (*_notes([f for _, f, *_ in rows]), SPREAD),
        tuple(records),
    )


def _notes(figures: Sequence[Published]) -> list[str]:
    """What the figures are of, each source once, with all that comes from it."""
    found: dict[tuple[str, str, str], dict[str, None]] = {}
    for f in figures:
        found.setdefault((f.metric, f.of, f.source), {})[_shown(f.value, f.spread)] = None
    return [f"{metric} {', '.join(values)}: {of} ({source})." for (metric, of, source), values in found.items()]


def _stated(arm: Arm) -> list[Published]:
    config: dict[str, Any] = arm.runs[0].manifest.get("config") or {}
    made = [Published(**{k: v for k, v in f.items() if k != "_target_"}) for f in config.get("published") or ()]
    return [f for f in made if f.defense in (None, arm.defense)]


def _seen(arm: Arm, metric: str, peak: Estimate) -> list[str | None]:
    """Who measured it; ``None`` for a metric that needs no adversary."""
    if metric == PEAK and peak.state == "ok":
        return [None]
    if arm.series(metric):
        return [None]
    return [x for x in arm.adversaries if arm.leakage(metric, x).state != "absent"]


def _measured(arm: Arm, metric: str, adversary: str | None, peak: Estimate) -> tuple[tuple[float, ...], int, int]:
    """All values, how many there are, and how many there should be; of utility, the last round's of each seed."""
    if metric == PEAK:
        return peak.values, len(peak.values), arm.n
    if adversary is None:
        values = tuple(v for v in (run.final(metric) for run in arm.runs) if v is not None)
        return values, len(values), arm.n
    return arm.pooled(metric, adversary), *arm.attacks(metric, adversary)


def _shown(value: float | None, spread: float | None) -> str:
    if value is None:
        return "—"
    digits = 4 if abs(value) < 1 else 2
    return f"{value:.{digits}f}" if spread is None else f"{value:.{digits}f} ± {spread:.{digits}f}"
