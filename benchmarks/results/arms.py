"""Arms: the runs that differ in their seed alone, their labels, and means over them with an interval."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf, isinf, sqrt
from typing import Any

import numpy as np
from scipy import stats

from privbench.benchmarks.results.runs import Run, State, Statement, combine

BASELINES = ("grey", "mean_colour", "mosaic", "other_image", "class_mean")
"""Guesses of an image that need no attack; ``psnr_db_grey`` is the PSNR of the first of them."""
GUESSES = {"psnr_db": BASELINES, "ssim": BASELINES, "mse": ("mean", "other_record", "class_mean")}
"""The trivial guesses by metric; the error is that of inputs that are no images."""
LOWER = ("mse", "lpips")
"""Measures of which less is a better reconstruction."""


@dataclass(frozen=True)
class Estimate:
    """A number over seeds.

    Args:
        values: one a seed; empty unless ``state`` is ``"ok"``.
        state: whether every seed has a number.
        seeds: how many seeds there are.
    """

    values: tuple[float, ...]
    state: State
    seeds: int

    @property
    def mean(self) -> float | None:
        return float(np.mean(self.values)) if self.values else None

    @property
    def half_width(self) -> float | None:
        """Half the width of the 95% interval of the mean (Student's t); ``None`` for one seed."""
        n = len(self.values)
        if n < 2 or any(isinf(v) for v in self.values):
            return None
        return float(stats.t.ppf(0.975, n - 1) * np.std(self.values, ddof=1) / sqrt(n))


def estimate(measured: Sequence[tuple[State, float | None]]) -> Estimate:
    """One value a seed. A seed without a number leaves no mean: an average over survivors is a wrong number."""
    states = [s for s, _ in measured]
    values = tuple(v for s, v in measured if s == "ok" and v is not None)
    if len(values) == len(measured):
        return Estimate(values, "ok" if measured else "absent", len(measured))
    order: tuple[State, ...] = ("failed", "skipped", "not_applicable", "absent")
    return Estimate((), next(s for s in order if s in states), len(measured))


@dataclass(frozen=True)
class Arm:
    """Runs with the same settings.

    Args:
        runs: by seed.
        more: what tells this arm from others with the same defense and poisoning (``epsilon=8``).
    """

    runs: tuple[Run, ...]
    more: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return self.runs[0].arm_key

    @property
    def defense(self) -> str:
        return self.runs[0].defense

    @property
    def poisoning(self) -> str:
        return self.runs[0].poisoning

    @property
    def poisoned(self) -> bool:
        return self.runs[0].poisoned

    @property
    def label(self) -> str:
        return ", ".join((self.runs[0].label, *self.more))

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(r.seed for r in self.runs)

    @property
    def rounds_done(self) -> str:
        """By its runs, each number once."""
        return " ".join(sorted({str(r.rounds_done) for r in self.runs}))

    @property
    def n(self) -> int:
        return len(self.runs)

    @cached_property
    def adversaries(self) -> list[str]:
        return sorted({a for r in self.runs for a in r.adversaries})

    def measures(self, adversary: str) -> tuple[str, ...]:
        """What tells how much leaked to ``adversary``: PSNR and SSIM of images, MSE of other inputs (lower leaks more).

        The MSE of images is recorded too, in other units, and is not meant.
        """
        every = {m.name for r in self.runs for m in r.metrics if m.adversary == adversary}
        return ("psnr_db", "ssim") if {"psnr_db", "ssim"} & every else ("mse",) if "mse" in every else ()

    def final(self, metric: str) -> Estimate:
        """The metric in the last round that has it."""
        values = [(r.final(metric), bool(r.rows(metric))) for r in self.runs]
        return estimate([("ok" if v is not None else "failed" if there else "absent", v) for v, there in values])

    def leakage(self, metric: str, adversary: str) -> Estimate:
        """The metric over all rounds and victims that ``adversary`` attacked; a baseline may be without adversary."""
        named = [r.mean(metric, adversary) for r in self.runs]
        if all(s == "absent" for s, _ in named):
            named = [r.mean(metric) for r in self.runs]
        return estimate(named)

    def best_baseline(self, metric: str, adversary: str) -> tuple[str, Estimate] | None:
        """The trivial guess with the best ``metric``: an attack that is no better has learnt nothing."""
        found = {b: self.leakage(f"{metric}_{b}", adversary) for b in GUESSES[metric]}
        sign = -1 if metric in LOWER else 1
        means = {b: sign * e.mean for b, e in found.items() if e.mean is not None}
        return max(((b, found[b]) for b in means), key=lambda b: means[b[0]], default=None)

    def gain(self, metric: str, adversary: str) -> Estimate | None:
        """By how much the attack is better than the best trivial guess, seed by seed; negative where it is worse.

        ``None`` without a number of either.
        """
        found, best = self.leakage(metric, adversary), self.best_baseline(metric, adversary)
        if best is None or found.state != "ok" or best[1].state != "ok":
            return None
        sign = -1 if metric in LOWER else 1
        pairs = zip(found.values, best[1].values, strict=True)
        return Estimate(tuple(sign * (a - b) for a, b in pairs), "ok", self.n)

    def leakage_by_round(self, metric: str, adversary: str) -> dict[int, Estimate]:
        """:meth:`leakage` of each attacked round; a round that a seed lacks has no number."""
        rows = [r.rows(metric, adversary) for r in self.runs]
        rounds = sorted({m.round for each in rows for m in each if m.round is not None})
        return {n: estimate([combine([m for m in each if m.round == n]) for each in rows]) for n in rounds}

    def pooled(self, metric: str, adversary: str) -> tuple[float, ...]:
        """The metric of every round, victim and seed; nothing where one of them failed: survivors are no sample."""
        if self.leakage(metric, adversary).state != "ok":
            return ()
        rows = (m for r in self.runs for m in r.rows(metric, adversary))
        return tuple(m.value for m in rows if m.value is not None)

    def attacks(self, metric: str, adversary: str) -> tuple[int, int]:
        """How many attacks have a value, and how many were made; where nothing was visible none was."""
        rows = [m for r in self.runs for m in r.rows(metric, adversary) if m.status != "not_applicable"]
        return sum(m.value is not None and m.status is None for m in rows), len(rows)

    def unattacked(self, metric: str, adversary: str, round: int | None = None) -> tuple[int, int]:
        """For how many victims there was nothing to attack, of how many (in one round).

        They are in no mean, which then is over other victims than that of an arm that lacks none.
        """
        rows = [m for r in self.runs for m in r.rows(metric, adversary) if round is None or m.round == round]
        return sum(m.status == "not_applicable" for m in rows), len(rows)

    def reason(self, metric: str, adversary: str) -> str | None:
        """Why ``metric`` has no number, as the first run that says so puts it."""
        rows = (m for r in self.runs for m in r.rows(metric, adversary))
        return next((" ".join(str(m.reason).split()) for m in rows if m.status and m.reason), None)

    def series(self, metric: str) -> dict[int, Estimate]:
        """The metric by round, for rounds that every seed has."""
        each = [r.series(metric) for r in self.runs]
        rounds = sorted(set.intersection(*(set(s) for s in each)))
        return {r: Estimate(tuple(s[r] for s in each), "ok", self.n) for r in rounds}

    def guarantees(self) -> dict[tuple[str, str], Statement]:
        """The weakest statement over seeds by (unit, adversary): a guarantee of the arm has to hold for each seed."""
        pairs = sorted({(s.unit, s.adversary) for r in self.runs for s in r.statements})
        return {p: self._weakest(p) for p in pairs}

    def _weakest(self, pair: tuple[str, str]) -> Statement:
        found = [[s for s in r.statements if (s.unit, s.adversary) == pair] for r in self.runs]
        stated = [s for each in found for s in each]
        if not all(found):
            return Statement(*pair, inf, None, any(s.simulated for s in stated), stated[0].adjacency)
        weakest = max(stated, key=lambda s: (s.epsilon, s.delta or 0.0))
        return replace(weakest, simulated=any(s.simulated for s in stated))


def cut_short(arms: Iterable[Arm]) -> list[str]:
    """A note for each arm whose runs did fewer rounds than were asked for, and why."""
    said = [(a, sorted({str(r.manifest["stopped"]) for r in a.runs if r.manifest.get("stopped")})) for a in arms]
    return [f"{arm.label}: {'; '.join(reasons)}." for arm, reasons in said if reasons]


def group(runs: Iterable[Run], revisions: bool = False) -> list[Arm]:
    """Arms in the order in which the first run of each comes, runs by seed, with labels that tell them apart.

    Args:
        runs: of one or more setups.
        revisions: put the revision into the label.
    """
    by_key: dict[str, list[Run]] = {}
    for run in runs:
        by_key.setdefault(run.arm_key, []).append(run)
    arms = [Arm(tuple(sorted(r, key=lambda r: (r.seed, r.id)))) for r in by_key.values()]
    chosen = _choices(arms)
    alike = Counter((a.runs[0].label, chosen[a.key]) for a in arms)
    labelled = []
    for arm in arms:
        same = (arm.runs[0].label, chosen[arm.key])
        more = chosen[arm.key]
        if alike[same] > 1:
            more += _differences(arm, [a for a in arms if (a.runs[0].label, chosen[a.key]) == same])
        if any(r.manifest["shown_assurance"] == "software" for r in arm.runs):
            more += ("software TEE",)
        if revisions:
            more += ("revision " + " and ".join(sorted({r.revision for r in arm.runs})),)
        labelled.append(Arm(arm.runs, more))
    return labelled


def _choices(arms: Sequence[Arm]) -> dict[str, tuple[str, ...]]:
    """The choices besides defense and poisoning that differ between arms."""
    groups = ("task", "model", "federation", "leakage", "inference")
    differing = [g for g in groups if len({str(a.runs[0].choices.get(g)) for a in arms}) > 1]
    return {a.key: tuple(str(a.runs[0].choices.get(g) or f"no {g}") for g in differing) for a in arms}


def _differences(arm: Arm, others: Sequence[Arm]) -> tuple[str, ...]:
    """Settings in which ``arm`` and ``others`` (with ``arm`` among them) differ, as ``name=value``."""
    every = {a.key: flatten(a.runs[0].settings) for a in others}
    paths = sorted({p for flat in every.values() for p in flat})
    differing = [p for p in paths if len({str(flat.get(p, "default")) for flat in every.values()}) > 1]
    leaves = Counter(p.rpartition(".")[2] for p in differing)
    whole = flatten(arm.runs[0].manifest.get("config") or {})

    def shown(path: str) -> str:
        leaf = path.rpartition(".")[2]
        # What is left out of the settings is the default, which the whole configuration tells.
        value = every[arm.key].get(path, whole.get(path, "default"))
        if leaf == "_target_":
            return f"{path.rpartition('.')[0]}={str(value).rpartition('.')[2]}"
        value = f"{value:g}" if isinstance(value, float) else value
        return f"{leaf if leaves[leaf] == 1 else path}={value}"

    return tuple(shown(p) for p in differing)


def order(run: Run) -> tuple[Any, ...]:
    """To sort runs: no defense first, then by defense, poisoner, settings (numbers as numbers) and seed."""
    settings = [
        (path, not isinstance(value, int | float), value if isinstance(value, int | float) else str(value))
        for path, value in sorted(flatten(run.settings).items())
    ]
    return (run.defense != "none", run.defense, run.poisoned, run.poisoning, settings, run.seed, run.id)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``{"defense.local.clip": 1.0}``."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        path = f"{prefix}.{key}" if prefix else key
        flat.update(flatten(value, path) if isinstance(value, Mapping) and value else {path: value})
    return flat
