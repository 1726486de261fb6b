"""The table of arms: what each defense costs and what it stops. It never trains."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import isinf
from statistics import median
from textwrap import fill

from privbench.benchmarks.results import filtered
from privbench.benchmarks.results.arms import Arm, Estimate, cut_short, estimate
from privbench.benchmarks.results.durability import Durability, change, durability, stops
from privbench.benchmarks.results.load import Results
from privbench.benchmarks.results.refusals import refusals, refused
from privbench.benchmarks.results.runs import Statement
from privbench.benchmarks.results.tabular import Table, at_most, number, percent

UNEQUAL = 0.005
"""Balanced accuracy and AUC get a column once balanced accuracy differs from accuracy by more than this."""


def table(results: Results) -> Table:
    """The table of ``results``.

    Raises:
        Refused: if an arm can't be averaged; :meth:`Results.split` gives those that can.
    """
    arms = results.arms()
    fates = {a.key: Fate(floor(a, results), change(a, "accuracy", results), durability(a)) for a in arms}
    columns = _columns(arms, fates)
    rows = tuple(tuple(cell(a) for _, cell in columns) for a in arms)
    records = tuple(_record(a, arms, fates[a.key]) for a in arms)
    return Table(tuple(h for h, _ in columns), rows, tuple(_notes(arms, fates, results)), records)


@dataclass(frozen=True)
class Fate:
    """How an arm's poisoner fares, beside the runs without it.

    Args:
        floor: from :func:`floor`.
        change: of accuracy.
        lived: over the rounds.
    """

    floor: Estimate | None
    change: Estimate
    lived: Durability


def floor(arm: Arm, results: Results) -> Estimate | None:
    """The false-trigger rate of the runs without the poisoner, same settings and seeds; ``None`` without all of them.

    Where there are none, it is the success rate of the runs whose poisoner poisons no record. An attack success rate is
    read against it: the trigger alone may look like the target class.
    """
    pairs = ((results.twin, "false_trigger_rate"), (results.idle, "asr")) if arm.poisoned else ()
    for other, metric in pairs:
        runs = [other(r) for r in arm.runs]
        values = [None if r is None else r.final(metric) for r in runs]
        found = estimate([("absent" if v is None else "ok", v) for v in values])
        if found.state == "ok":
            return found
    return None


Column = tuple[str, Callable[[Arm], str]]


def _columns(arms: list[Arm], fates: dict[str, Fate]) -> list[Column]:
    columns: list[Column] = [
        ("defense", lambda a: a.defense),
        ("poisoning", lambda a: a.poisoning if a.poisoned else "—"),
    ]
    if any(a.more for a in arms):
        columns.append(("setting", lambda a: "\n".join(a.more)))
    columns += [("n", lambda a: f"n={a.n}"), ("accuracy\n(%)", lambda a: percent(a.final("accuracy")))]
    if any(f.change.state == "ok" for f in fates.values()):
        columns.append(("acc. change\nby poisoner", lambda a: _points(fates[a.key].change)))
    if _unequal(arms):
        columns.append(("balanced\nacc. (%)", lambda a: percent(a.final("balanced_accuracy"))))
        columns.append(("AUC\n(%)", lambda a: percent(a.final("auc"))))
    if any(a.final("robust_accuracy").state != "absent" for a in arms):
        columns.append(("robust\nacc. (%)", lambda a: percent(a.final("robust_accuracy"))))
    if any(a.poisoned for a in arms):
        columns.append(("ASR\n(%)", lambda a: percent(a.final("asr")) if a.poisoned else "—"))
        columns.append(("floor\n(%)", lambda a: percent(fates[a.key].floor)))
    if any(stops(r) for a in arms for r in a.runs):
        columns.append(("peak\n(%)", lambda a: percent(fates[a.key].lived.peak) if a.poisoned else "—"))
        columns.append(("area\n(%)", lambda a: percent(fates[a.key].lived.area) if a.poisoned else "—"))
        columns.append(("lifespan\n(rounds)", lambda a: _lived(fates[a.key].lived)))
    columns += filtered.columns(arms)
    if any(refusals(a) for a in arms):
        columns.append(("refused\n(rounds)", refused))
    for adversary in sorted({x for a in arms for x in a.adversaries}):
        who, found = adversary.replace("_", " "), _measures(arms, adversary)
        if "psnr_db" in found:
            columns.append((f"PSNR (dB)\n{who}\n(best trivial)", _leakage("psnr_db", adversary, 1)))
            columns.append((f"SSIM\n{who}\n(best trivial)", _leakage("ssim", adversary, 2)))
        if "mse" in found:
            columns.append((f"MSE\n{who}\n(trivial)", _leakage("mse", adversary, 3)))
    if any(_group(a).state == "ok" for a in arms):
        columns.append(("ε of the\npoisoner's group", lambda a: number(_group(a), 1)))
    columns.append(("privacy", lambda a: guarantee(a.guarantees().values())))
    columns.append(("s/round\n(total)", _seconds))
    return columns


def _group(arm: Arm) -> Estimate:
    """The guarantee against all of the poisoner's clients together."""
    values = [r.final("group_epsilon", "model_recipient") for r in arm.runs]
    return estimate([("absent" if v is None else "ok", v) for v in values])


def _points(found: Estimate) -> str:
    """A difference of fractions in percentage points."""
    if found.mean is None:
        return "—"
    half = found.half_width
    return f"{100 * found.mean:+.1f}" + ("" if half is None else f" ± {100 * half:.1f}")


def _lived(found: Durability) -> str:
    return ("≥ " if found.survives and found.lifespan.mean is not None else "") + number(found.lifespan, 1)


def _unequal(arms: list[Arm]) -> bool:
    pairs = ((r.final("accuracy"), r.final("balanced_accuracy")) for a in arms for r in a.runs)
    return any(x is not None and y is not None and abs(x - y) > UNEQUAL for x, y in pairs)


def _leakage(metric: str, adversary: str, digits: int) -> Callable[[Arm], str]:
    def cell(arm: Arm) -> str:
        if metric not in arm.measures(adversary):
            return "—"
        shown = number(arm.leakage(metric, adversary), digits)
        best = arm.best_baseline(metric, adversary)
        return (
            shown if best is None else f"{shown}\n({number(best[1], digits).split(' ')[0]} {best[0].replace('_', ' ')})"
        )

    return cell


def _measures(arms: list[Arm], adversary: str) -> list[str]:
    """What some arm measures leakage to ``adversary`` by; images and other inputs may stand in one table."""
    return [m for m in ("psnr_db", "ssim", "mse") if any(m in a.measures(adversary) for a in arms)]


def guarantee(statements: Iterable[Statement]) -> str:
    """Statements with the same numbers together: ``ε=8, δ=0.001 sim., record: network, server operator``, or ``∞``."""
    lines: dict[str, list[str]] = {}
    for s in statements:
        delta = "" if s.delta is None or isinf(s.epsilon) else f", δ={at_most(s.delta, 2)}"
        simulated = " sim." if s.simulated and not isinf(s.epsilon) else ""
        lines.setdefault(f"ε={at_most(s.epsilon)}{delta}{simulated}, {s.unit}", []).append(
            s.adversary.replace("_", " ")
        )
    return "\n".join(fill(f"{k}: {', '.join(v)}", 32) for k, v in lines.items()) or "∞"


def seconds(arm: Arm) -> tuple[Estimate, Estimate]:
    """Median seconds of a round, and their sum over rounds."""
    each = [[*r.series("round_seconds").values()] for r in arm.runs]
    if not all(each):
        return estimate([]), estimate([])
    return estimate([("ok", median(s)) for s in each]), estimate([("ok", sum(s)) for s in each])


def _seconds(arm: Arm) -> str:
    each, total = (e.mean for e in seconds(arm))
    return "—" if each is None or total is None else f"{each:.3g}\n({total:.4g})"


def _record(arm: Arm, arms: list[Arm], fate: Fate) -> dict[str, object]:
    record: dict[str, object] = {"label": arm.label, "defense": arm.defense, "poisoning": arm.poisoning}
    record |= {g: arm.runs[0].choices.get(g) for g in ("task", "model", "federation", "leakage", "experiment")}
    record |= {"n": arm.n, "seeds": " ".join(map(str, arm.seeds)), "runs": " ".join(r.id for r in arm.runs)}
    record |= {"rounds": arm.rounds_done}
    record |= {"revision": " ".join(sorted({r.revision for r in arm.runs}))}
    record |= {"assurance": " ".join(sorted({r.manifest["shown_assurance"] for r in arm.runs}))}
    for metric in ("accuracy", "balanced_accuracy", "auc", "loss", "robust_accuracy", "asr", "false_trigger_rate"):
        record |= _numbers(metric, arm.final(metric))
    lived = fate.lived
    record |= {**_numbers("asr_peak", lived.peak), **_numbers("asr_area", lived.area)}
    record |= {**_numbers("lifespan_rounds", lived.lifespan), "lifespan_censored": lived.survives}
    record |= _numbers("accuracy_change", fate.change)
    for metric in filtered.RATES.values():
        record |= _numbers(metric, filtered.rate(arm, metric))
    record["told_f"], record["attackers"] = filtered.told(arm)
    record |= {**_numbers("false_trigger_floor", fate.floor), "refused": "; ".join(refused(arm).splitlines())}
    for adversary in sorted({x for a in arms for x in a.adversaries}):
        for metric in _measures(arms, adversary):
            measured = metric in arm.measures(adversary)
            found = arm.leakage(metric, adversary) if measured else estimate([])
            best = arm.best_baseline(metric, adversary) if measured else None
            record |= {**_numbers(f"{metric}[{adversary}]", found), f"{metric}[{adversary}]_state": found.state}
            record |= _numbers(f"{metric}_baseline[{adversary}]", best[1] if best else None)
            record[f"{metric}_baseline[{adversary}]_name"] = best[0] if best else None
    own, pairs = arm.guarantees(), sorted({p for a in arms for p in a.guarantees()})
    record |= {"simulated_population": False} if pairs else {}
    for pair in pairs:
        name, stated = f"[{pair[0]},{pair[1]}]", own.get(pair)
        record[f"epsilon{name}"] = "inf" if stated is None else stated.epsilon
        record[f"adjacency{name}"] = stated.adjacency if stated else None
        record[f"delta{name}"] = stated.delta if stated else None
        record[f"simulated{name}"] = stated.simulated if stated else None
    each, total = seconds(arm)
    return record | {"round_seconds_median": each.mean, "total_seconds": total.mean}


def _numbers(name: str, found: Estimate | None) -> dict[str, object]:
    return {f"{name}_mean": found and found.mean, f"{name}_half_width": found and found.half_width}


def _notes(arms: list[Arm], fates: dict[str, Fate], results: Results) -> list[str]:
    notes = []
    if any(a.n > 1 for a in arms):
        notes.append("a ± b: mean over n seeds and half the width of its 95% t-interval.")
    if any(a.n == 1 for a in arms):
        notes.append("n=1: one seed, so no interval.")
    if any(a.poisoned for a in arms):
        notes.append("floor: false-trigger rate of the same run without the poisoner, to be read against ASR.")
    said = [r.manifest.get("poisoner") or {} for a in arms for r in a.runs]
    covered = sorted({p.get("trigger_share") or 0.0 for p in said})
    if any(covered):
        notes.append(f"the trigger covers {', '.join(f'{100 * c:.2g}' for c in covered if c)}% of an input.")
    if any(f.change.state == "ok" for f in fates.values()):
        notes.append(
            "acc. change: final accuracy less that of the same run without the poisoner, in percentage points."
        )
    if any(stops(r) for a in arms for r in a.runs):
        notes.append(
            "peak, area (mean over rounds) of ASR; lifespan: rounds after the attack with ASR of at least 50%, "
            "≥ where it still was at the end."
        )
    notes += [*filtered.notes(arms), *cut_short(arms)]
    for arm in arms:
        if arm.poisoned and fates[arm.key].floor is None:
            lost = [r.id for r in arm.runs if (t := results.twin(r)) is None or t.final("false_trigger_rate") is None]
            notes.append(f"no floor for {arm.label}: no complete run without the poisoner for {', '.join(lost)}.")
    if any(s.simulated for a in arms for s in a.guarantees().values()):
        notes.append("sim.: noise or sampling came from a seed, so it is none against whoever knows the seed.")
    if any(not a.guarantees() for a in arms):
        notes.append("privacy ∞: no guarantee.")
    heuristic = [a.label for a in arms if any(r.manifest.get("heuristic") for r in a.runs)]
    if heuristic:
        notes.append(f"a heuristic, which proves nothing, so no epsilon is stated: {'; '.join(heuristic)}.")
    for arm in arms:
        reasons = {arm.reason(m, x) for x in arm.adversaries for m in arm.measures(x)[:1]} - {None}
        notes += [f"{arm.label}, leakage: {r}." for r in sorted(str(r).rstrip(".") for r in reasons)]
    if any("mse" in a.measures(x) for a in arms for x in a.adversaries):
        notes.append("MSE: in squared standard deviations; the lower, the more leaks; (trivial): the best guess.")
    if any("software TEE" in a.more for a in arms):
        notes.append("software TEE: the attestation is emulated, and nothing is assured by hardware.")
    shared = [a.label for a in arms if any(r.manifest.get("isolation") == "same_guest" for r in a.runs)]
    if shared:
        notes.append(f"isolation same_guest (all parties in one guest, the owner outside): {'; '.join(shared)}.")
    anew = [r.id for a in arms for r in a.runs if r.manifest.get("dropped")]
    if anew:
        notes.append(f"begun by another revision, and started anew: {', '.join(anew)}.")
    revisions = sorted({r.revision for a in arms for r in a.runs})
    if len(revisions) > 1:
        notes.append(f"MIXED REVISIONS: {', '.join(revisions)}.")
    if any((r.manifest["revision"] or {}).get("dirty") for a in arms for r in a.runs):
        notes.append("revision with +: the code had uncommitted changes.")
    return notes
