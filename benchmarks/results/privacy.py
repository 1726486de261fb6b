"""Client-level noise by mechanism: epsilon against each adversary, and how much noise it takes."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import inf, sqrt
from typing import Any

from privbench.benchmarks.build import canonical
from privbench.benchmarks.results.arms import Arm
from privbench.benchmarks.results.load import Results
from privbench.benchmarks.results.runs import Metric, Statement
from privbench.benchmarks.results.style import comparable
from privbench.benchmarks.results.tabular import Table, at_most

ADVERSARIES = ("server_operator", "model_recipient")
ASKED = ("epsilon", "noise_multiplier", "delta", "clip", "adjacency", "accountant")
"""Of a plan, what its noise follows from; what is at its default is in no run's settings."""


@dataclass(frozen=True)
class Mechanism:
    """The noise of one arm.

    Args:
        arm: with the metrics ``noise_std`` and ``noise_std_measured``.
    """

    arm: Arm

    @cached_property
    def _rows(self) -> tuple[list[Metric], list[Metric]]:
        runs = self.arm.runs
        return [m for r in runs for m in r.rows("noise_std")], [m for r in runs for m in r.rows("noise_std_measured")]

    @property
    def by(self) -> str:
        """Who adds the noise: ``central``, ``local`` or ``distributed``."""
        return str(self._rows[0][0].more.get("noise"))

    @property
    def cohort(self) -> float:
        """Expected number of clients K in a sum."""
        return float(self._rows[0][0].more.get("cohort") or 1.0)

    @property
    def amplified(self) -> bool:
        """Whether its epsilon rests on sampling, which amplifies nothing against who sees who takes part."""
        return bool(self._rows[0][0].more.get("amplified"))

    @property
    def theory(self) -> float:
        return self._rows[0][0].value or 0.0

    @property
    def measured(self) -> float:
        """Root mean square over seeds."""
        return sqrt(_mean((m.value or 0.0) ** 2 for m in self._rows[1]))

    @property
    def interval(self) -> tuple[float, float]:
        """95% of one seed's measurement, from the chi-squared distribution; the widest over seeds."""
        more = [m.more for m in self._rows[1]]
        return min(float(m["low"]) for m in more), max(float(m["high"]) for m in more)

    @property
    def target(self) -> str:
        """Equal for mechanisms that may be compared: same setup, cohort and clip, and the same guarantee asked for.

        One epsilon takes other noise by another adjacency (twice as much by ``replace``) or accountant.
        """
        run = self.arm.runs[0]
        plan = (run.settings.get("defense") or {}).get("privacy") or {}
        asked = {k: plan.get(k) for k in ASKED}
        return canonical({"setup": run.setup_key, "cohort": self.cohort, **asked})


def mechanisms(arms: Iterable[Arm]) -> dict[str, Mechanism]:
    """Arms that add client-level noise, by key; clipping without noise isn't one."""
    measured = [a for a in arms if all(r.rows("noise_std") and r.rows("noise_std_measured") for r in a.runs)]
    found = {a.key: Mechanism(a) for a in measured}
    return {key: m for key, m in found.items() if m.theory > 0}


def reference(mechanism: Mechanism, others: Iterable[Mechanism]) -> Mechanism | None:
    """Central noise for the same target."""
    return next((o for o in others if o.by == "central" and o.target == mechanism.target), None)


def privacy(results: Results) -> Table | None:
    """Epsilon by adversary and mechanism, and each mechanism's noise beside theory; ``None`` for less than two.

    Arms without noise stand in it as controls.

    Raises:
        Refused: if an arm can't be averaged.
    """
    arms = comparable(results.arms()) if results.runs else []
    found = mechanisms(arms)
    if len(found) < 2:
        return None
    setups = {m.arm.runs[0].setup_key for m in found.values()}
    shown = [a for a in arms if a.runs[0].setup_key in setups and not _record_level(a)]
    headers = ("defense", "setting", "noise added by", "n", *(f"ε against\n{a.replace('_', ' ')}" for a in ADVERSARIES))
    headers += ("noise std\n(theory)", "noise std\nmeasured", "times\ncentral", "√K")
    if not any(a.more for a in shown):
        headers = (headers[0], *headers[2:])
    records = tuple(_record(a, found) for a in shown)
    rows = tuple(_cells(a, r, "setting" in headers) for a, r in zip(shown, records, strict=True))
    return Table(headers, rows, tuple(_notes(shown, found)), records)


def _record_level(arm: Arm) -> bool:
    return any(unit != "client" for unit, _ in arm.guarantees())


def _record(arm: Arm, found: dict[str, Mechanism]) -> dict[str, object]:
    said, own = arm.guarantees(), found.get(arm.key)
    central = reference(own, found.values()) if own else None
    record: dict[str, object] = {"label": arm.label, "defense": arm.defense, "n": arm.n}
    record |= {"noise_added_by": own.by if own else None, "unit": "client"}
    for adversary in ADVERSARIES:
        stated = said.get(("client", adversary))
        record[f"epsilon[{adversary}]"] = stated.epsilon if stated else inf
        record[f"adjacency[{adversary}]"] = stated.adjacency if stated else None
        record[f"simulated[{adversary}]"] = stated.simulated if stated else None
    record |= {"delta": next((s.delta for s in said.values()), None), "simulated_population": False}
    low, high = own.interval if own else (None, None)
    record |= {"noise_std": own and own.theory, "noise_std_measured": own and own.measured}
    record |= {"noise_std_measured_low": low, "noise_std_measured_high": high}
    record["times_central"] = own.measured / central.measured if own and central else None
    return record | {"cohort": own and own.cohort, "sqrt_cohort": own and sqrt(own.cohort)}


def _cells(arm: Arm, record: dict[str, Any], setting: bool) -> tuple[str, ...]:
    def shown(value: float | None, digits: int) -> str:
        return "—" if value is None else f"{value:.{digits}g}"

    first = (arm.defense, "\n".join(arm.more)) if setting else (arm.defense,)
    by = {None: "nobody", "central": "aggregator", "local": "each client", "distributed": "each client, a share"}
    numbers = [at_most(record[f"epsilon[{a}]"]) for a in ADVERSARIES]
    numbers += [shown(record[k], 4) for k in ("noise_std", "noise_std_measured")]
    numbers += [shown(record[k], 3) for k in ("times_central", "sqrt_cohort")]
    return (*first, by[record["noise_added_by"]], f"n={arm.n}", *numbers)


def _notes(arms: list[Arm], found: dict[str, Mechanism]) -> list[str]:
    stated: list[Statement] = [s for a in arms for s in a.guarantees().values()]
    deltas = sorted({s.delta for s in stated if s.delta is not None})
    notes = [f"ε: client level, δ={', '.join(f'{d:g}' for d in deltas)}; ∞: no guarantee."]
    notes.append("noise std: on each coordinate of the released mean; measured on zero updates, apart from the run.")
    notes.append("√K, K clients a sum: what local noise costs beside central noise against the same adversary.")
    if any(s.simulated for s in stated):
        notes.append(
            "Noise or sampling came from seeds, so there is no guarantee against whoever knows them (simulated)."
        )
    if any(m.amplified for m in found.values()):
        notes.append(
            "TIMES CENTRAL MIXES ADVERSARIES: central noise is amplified by sampling, against recipients alone."
        )
    asked = {m.target for m in found.values() if m.by == "central"}
    if any(m.target not in asked for m in found.values()):
        notes.append("times central —: no central noise here was asked for the same ε, δ, clip, adjacency, accountant.")
    if any("software TEE" in a.more for a in arms):
        notes.append("software TEE: the attestation is emulated, and nothing is assured by hardware.")
    return notes


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
