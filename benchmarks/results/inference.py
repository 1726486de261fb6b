"""What audits and membership inference found: as points, as curves of two rates, and as a table."""

import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf, isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from privbench.attacks.inference.membership import of_guessing
from privbench.benchmarks.build import canonical
from privbench.benchmarks.results.arms import Arm, Estimate
from privbench.benchmarks.results.load import Results
from privbench.benchmarks.results.read import MalformedError
from privbench.benchmarks.results.runs import Metric
from privbench.benchmarks.results.style import words
from privbench.benchmarks.results.tabular import Table, at_most, number

APART = ("defense", "poisoning", "inference")
RATE = "membership_tpr_at_1_percent_fpr"


def groups(results: Results) -> list[tuple[str, Results]]:
    """Results that differ in defense, poisoning and inference alone, of those in which something was inferred.

    Each has a name that tells it from the others; a single one has none.
    """
    inferring = tuple(r for r in results.runs if "inference" in r.settings)
    return replace(results, runs=inferring).setups(APART)


@dataclass(frozen=True)
class Found:
    """What one arm's inference says of one adversary.

    Args:
        arm: labelled without its inference.
        adversary: whose view was used.
        rows: of ``empirical_epsilon``, one a seed.
    """

    arm: Arm
    adversary: str
    rows: tuple[Metric, ...]

    @property
    def method(self) -> str:
        return str(self.rows[0].more.get("method"))

    @property
    def unit(self) -> str:
        return self.rows[0].unit or "record"

    @property
    def proven(self) -> float:
        """Of the seeds' the largest; infinite without a claim."""
        stated = [m.more.get("proven") for m in self.rows]
        return max(inf if p is None else float(p) for p in stated)

    @property
    def of_record(self) -> bool:
        """Whether it is of records under a guarantee for clients."""
        return isfinite(self.proven) and self.unit == "record" and ("client", self.adversary) in self.arm.guarantees()

    @property
    def allowed(self) -> tuple[float, float] | None:
        """The weakest (epsilon, delta) that is proven of a single record, if it is in every seed."""
        if self.unit != "record" or not isfinite(self.proven):
            return None
        return self.proven, max(float(m.more.get("delta") or 0.0) for m in self.rows)

    @property
    def adjacency(self) -> str | None:
        """By which the proven epsilon holds; ``None`` where nothing is stated, or in old runs."""
        own = self.rows[0].more.get("adjacency")
        stated = self.arm.guarantees().get((self.unit, self.adversary))
        return str(own) if own else stated.adjacency if stated else None

    @property
    def empirical(self) -> tuple[float, ...]:
        return tuple(m.value for m in self.rows if m.value is not None)

    @property
    def violated(self) -> bool:
        """Whether a seed's canaries found more than is proven; membership inference is no bound."""
        return self.method == "canaries" and any(m.status == "violated" for m in self.rows)

    @cached_property
    def power(self) -> float | None:
        """Of the audit against half the noise, the least over seeds."""
        rows = [m for r in self.arm.runs for m in r.rows("audit_power", self.adversary)]
        values = [m.value for m in rows if m.value is not None]
        return min(values) if values else None

    def rate(self, metric: str) -> Estimate:
        """A metric of membership inference over seeds."""
        return self.arm.leakage(metric, self.adversary)


def inferred(results: Results) -> list[Found]:
    """By arm, inference and adversary.

    Raises:
        Refused: if an arm can't be averaged.
    """
    by_inference: dict[str, list[Any]] = {}
    for run in results.runs:
        by_inference.setdefault(canonical(run.settings.get("inference")), []).append(run)
    found = []
    for runs in by_inference.values():
        for arm in replace(results, runs=tuple(runs)).arms():
            found += of_arm(arm)
    return found


def of_arm(arm: Arm) -> list[Found]:
    """By adversary."""
    rows = [m for r in arm.runs for m in r.metrics if m.name == "empirical_epsilon"]
    adversaries = sorted({str(m.adversary) for m in rows})
    return [Found(arm, a, tuple(m for m in rows if m.adversary == a)) for a in adversaries]


@dataclass(frozen=True)
class Curve:
    """True against false positive rates, ``(t,)`` each, ascending."""

    fpr: np.ndarray
    tpr: np.ndarray

    def at(self, fpr: np.ndarray) -> np.ndarray:
        """The largest TPR at no more than so many false positives."""
        return self.tpr[np.searchsorted(self.fpr, fpr, side="right") - 1]


def curves(arm: Arm, suffix: str = "") -> list[Curve]:
    """One a seed; ``suffix`` is that of the baseline's arrays. Empty where nothing was kept.

    Raises:
        MalformedError: if an artifact isn't what its name says.
    """
    paths = [r.path / "artifacts" / "membership.npz" for r in arm.runs]
    return [_read(path, suffix) for path in paths] if all(p.exists() for p in paths) else []


def _read(path: Path, suffix: str) -> Curve:
    try:
        with np.load(path, allow_pickle=False) as file:
            curve = Curve(file[f"fpr{suffix}"], file[f"tpr{suffix}"])
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise MalformedError(path, 1, f"not an archive of rates ({error})") from None
    if curve.fpr.shape != curve.tpr.shape or curve.fpr.ndim != 1 or not len(curve.fpr) or curve.fpr[0] > 0:
        raise MalformedError(path, 1, "rates aren't two equally long lists that begin at 0")
    return curve


def inference_table(results: Results) -> Table | None:
    """Empirical beside proven epsilon, and membership inference, one row an arm, method and adversary.

    Raises:
        Refused: if an arm can't be averaged.
    """
    named = [(name, f) for name, group in groups(results) for f in inferred(group)]
    found = [f for _, f in named]
    if not found:
        return None
    several = any(name for name, _ in named)
    headers = (
        *(["setting"] if several else []),
        "defense",
        "method",
        "against",
        "unit",
        "n",
        "ε proven",
        "ε empirical",
        "power",
        "AUC",
        "TPR at\n1% FPR",
    )
    records = tuple({"setting": name, **_record(f)} for name, f in named)
    rows = tuple((*([name] if several else []), *_cells(f, r)) for (name, f), r in zip(named, records, strict=True))
    return Table(headers, rows, tuple(_notes(found)), records)


def _record(found: Found) -> dict[str, object]:
    record: dict[str, object] = {"label": found.arm.label, "defense": found.arm.defense, "n": found.arm.n}
    record |= {"method": found.method, "adversary": found.adversary, "unit": found.unit}
    record |= {"adjacency": found.adjacency, "simulated_population": False}
    record |= {"epsilon_proven": found.proven, "epsilon_empirical": max(found.empirical, default=None)}
    record |= {
        "violated": found.violated,
        "power": found.power,
        "advantage_of_guessing": of_no_membership(found.arm, found.adversary),
    }
    return record | {m: found.rate(m).mean for m in ("membership_auc", "membership_advantage", RATE)}


def of_no_membership(arm: Arm, adversary: str) -> float | None:
    """The advantage of scores that know nothing, on average: above 0, since the threshold is chosen in hindsight."""
    rows = [m.more for r in arm.runs for m in r.rows("membership_advantage", adversary)]
    known = [(int(m["members"]), int(m["non_members"])) for m in rows if m.get("members") and m.get("non_members")]
    return fmean(of_guessing(*pair) for pair in known) if known else None


def _cells(found: Found, record: dict[str, Any]) -> tuple[str, ...]:
    worst = record["epsilon_empirical"]
    empirical = "—" if worst is None else f"{worst:.3g}" + (" BUG" if found.violated else "")
    power = "—" if found.power is None else f"{found.power:.2g}"
    numbers = [number(found.rate("membership_auc"), 3), number(found.rate(RATE), 3)]
    who = (found.arm.label, words(found.method), words(found.adversary), found.unit, f"n={found.arm.n}")
    return (*who, at_most(found.proven), empirical, power, *numbers)


def _notes(found: Sequence[Found]) -> Iterable[str]:
    yield "ε empirical: a lower bound, the largest over seeds, each at the confidence of its run."
    if any(f.power is not None for f in found):
        yield "power: probability that the audit finds half the noise, for the best adversary that the claim allows."
    for f in found:
        for m in f.rows if f.violated else ():
            if m.status == "violated":
                yield f"BUG FOUND in {f.arm.label}: {m.reason}"
    if any(isfinite(f.proven) and f.method != "canaries" for f in found):
        yield "Membership inference's ε is no bound: members were chosen by no coin, and share one model."
    if any(f.of_record for f in found):
        yield "A client's guarantee proves of one record what it does if another takes its place (updates 2 C apart)."
