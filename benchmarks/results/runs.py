"""One run, as its directory describes it: manifest, metrics, artifacts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from typing import Any, Literal

import numpy as np

from privbench.benchmarks.build import canonical

State = Literal["ok", "not_applicable", "failed", "skipped", "absent"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One line of ``metrics.jsonl``.

    Args:
        name: with its unit as a suffix where it has one (``psnr_db``, ``round_seconds``).
        value: ``None`` where nothing was measured; ``status`` and ``reason`` then say why.
        round: communication round, from 1.
        client: the victim or the client measured.
        adversary: whose view was attacked, or against whom a guarantee holds.
        status: ``None``, ``"not_applicable"`` (there was nothing to attack), ``"failed"`` or ``"skipped"``.
        unit: of an epsilon, ``"record"``, ``"patient"`` or ``"client"``.
        more: further keys of the line.
    """

    name: str
    value: float | None
    round: int | None = None
    client: int | None = None
    adversary: str | None = None
    status: str | None = None
    reason: str | None = None
    unit: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Statement:
    """A privacy guarantee of one run. ``epsilon`` is infinite where there is none.

    Args:
        unit: neighbouring data sets differ in one ``"record"``, ``"patient"`` or ``"client"``.
        adversary: against whom it holds.
        simulated: noise or sampling came from a seed, so that it is no guarantee against whoever knows the seed.
        adjacency: what neighbours are, ``"add_remove"``, ``"zero_out"`` or ``"replace"``; ``None`` in old manifests.
    """

    unit: str
    adversary: str
    epsilon: float
    delta: float | None
    simulated: bool
    adjacency: str | None = None


@dataclass(frozen=True)
class Run:
    """A run directory in memory.

    Args:
        path: the run directory.
        manifest: ``manifest.json``, checked.
        metrics: ``metrics.jsonl`` in the order of its lines.
        statements: the manifest's ``privacy``; empty where nothing is guaranteed.
    """

    path: Path
    manifest: Mapping[str, Any]
    metrics: tuple[Metric, ...]
    statements: tuple[Statement, ...] = ()

    @property
    def id(self) -> str:
        return self.manifest["id"]

    @property
    def attested(self) -> bool:
        """Whether its channel is one that has to show evidence."""
        defense = self.manifest["config"].get("defense")
        channel = defense.get("channel") if isinstance(defense, Mapping) else None
        target = channel.get("_target_") if isinstance(channel, Mapping) else None
        return isinstance(target, str) and target.endswith(".Attested")

    @property
    def seed(self) -> int:
        return self.manifest["seed"]

    @property
    def repeat(self) -> int:
        """Which measurement of the same numbers it is."""
        return self.manifest.get("repeat") or 0

    @property
    def status(self) -> str:
        return self.manifest["status"]

    @property
    def choices(self) -> Mapping[str, Any]:
        """The name chosen in each group, e.g. ``{"defense": "dp_local", "poisoning": "none"}``."""
        return self.manifest["choices"]

    @property
    def defense(self) -> str:
        """The option's name, and the channel's where it isn't that option's own: ``median, attested channel``."""
        name, channel = self.choices.get("defense") or "none", self.choices.get("channel")
        return f"{name}, {channel} channel" if channel else name

    @property
    def poisoning(self) -> str:
        return self.choices.get("poisoning") or "none"

    @property
    def label(self) -> str:
        """``dp_local`` or ``dp_local / patch``; labels that tell arms apart come from :func:`~.arms.group`."""
        return f"{self.defense} / {self.poisoning}" if self.poisoned else self.defense

    @property
    def settings(self) -> dict[str, Any]:
        """What changes the run's numbers, without the seed; a part that is ``none`` is absent."""
        return {k: v for k, v in self.manifest["settings"].items() if v is not None}

    @property
    def poisoned(self) -> bool:
        return "poisoning" in self.settings

    @property
    def revision(self) -> str:
        """The first 10 digits of the commit, ``+`` and 6 of the digest after it for uncommitted changes.

        The version for an installed package; ``unknown`` for neither.
        """
        revision = self.manifest["revision"]
        if revision is None:
            return "unknown"
        if revision.get("commit") is None:
            return str(revision["version"])
        changed = f"+{str(revision.get('diff') or '')[:6]}" if revision.get("dirty") else ""
        return str(revision["commit"])[:10] + changed

    @property
    def arm_key(self) -> str:
        """Equal for the runs that are averaged: same settings, any seed."""
        return canonical(self.settings)

    @property
    def setup_key(self) -> str:
        """Equal for the runs that are compared: same settings apart from defense and poisoning."""
        return canonical({k: v for k, v in self.settings.items() if k not in ("defense", "poisoning")})

    @property
    def twin_key(self) -> str:
        """Equal for a poisoned run and the run without its poisoner: other settings and seed are the same."""
        return f"{canonical({k: v for k, v in self.settings.items() if k != 'poisoning'})}|{self.seed}"

    @property
    def chance(self) -> float | None:
        """Accuracy of guessing: the metric ``chance``, else 1 / classes of the task, else ``None``."""
        measured = self.final("chance")
        if measured is not None:
            return measured
        classes = (self.manifest["config"].get("task") or {}).get("classes")
        return 1 / classes if isinstance(classes, int) and classes > 0 else None

    @property
    def adversaries(self) -> list[str]:
        """Whose views were attacked for leakage."""
        return sorted({m.adversary for m in self.metrics if m.name in ("psnr_db", "ssim", "mse") and m.adversary})

    def rows(self, metric: str, adversary: str | None = None) -> list[Metric]:
        """Lines of one metric and one adversary (``None``: lines without an adversary).

        Where a metric is given for the federation (no client) as well as by client, the former is meant.
        """
        rows = [m for m in self.metrics if m.name == metric and m.adversary == adversary]
        return [m for m in rows if m.client is None] or rows

    def final(self, metric: str, adversary: str | None = None) -> float | None:
        """The metric in the last round that has it, averaged over clients; ``None`` where it wasn't measured."""
        rows = self.rows(metric, adversary)
        last = max((m.round or 0 for m in rows), default=0)
        return combine([m for m in rows if (m.round or 0) == last])[1]

    def mean(self, metric: str, adversary: str | None = None) -> tuple[State, float | None]:
        """The metric over all rounds and clients that were attacked, and whether that is a number."""
        return combine(self.rows(metric, adversary))

    def series(self, metric: str, adversary: str | None = None) -> dict[int, float]:
        """The metric by round, averaged over clients; rounds without a number are left out."""
        rounds: dict[int, list[Metric]] = {}
        for row in self.rows(metric, adversary):
            if row.round is not None:
                rounds.setdefault(row.round, []).append(row)
        values = {r: combine(rows)[1] for r, rows in sorted(rounds.items())}
        return {r: v for r, v in values.items() if v is not None}

    @property
    def rounds_done(self) -> int:
        """How many it has done: fewer than it was asked for where a privacy budget was spent."""
        return max((m.round for m in self.metrics if m.round is not None), default=0)


def combine(rows: Sequence[Metric]) -> tuple[State, float | None]:
    """The mean over ``rows``; one failure among them leaves no mean, since survivors are not a sample.

    Rows where there was nothing to attack are no measurements and don't count.
    """
    if not rows:
        return "absent", None
    measured = [m for m in rows if m.status != "not_applicable"]
    if not measured:
        return "not_applicable", None
    values = [m.value for m in measured if m.value is not None and not isnan(m.value) and m.status is None]
    if len(values) < len(measured):
        lost = [m for m in measured if m.value is None or isnan(m.value) or m.status is not None]
        return ("skipped" if all(m.status == "skipped" for m in lost) else "failed"), None
    return "ok", float(np.mean(values))
