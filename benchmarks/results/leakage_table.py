"""The table of leakage: what each adversary reconstructed under each defense, beside what needs no attack."""

import re
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from privbench.benchmarks.results.arms import GUESSES, LOWER, Arm, Estimate
from privbench.benchmarks.results.load import Results
from privbench.benchmarks.results.style import words
from privbench.benchmarks.results.tabular import Table, number, percent

MEASURES = {"psnr_db": ("PSNR\n(dB)", 1), "mse": ("MSE", 3)}
"""Headers and digits of the measures of images and of other inputs."""
RATE = re.compile(r"success_rate_(.+)db")

Row = tuple[Arm, str, str]
"""An arm, an adversary, and the measure of what it reconstructed."""
Column = tuple[str, Callable[[Row], str]]


def leakage_table(results: Results) -> Table | None:
    """One row an arm and adversary; ``None`` where nothing was attacked.

    Means are over seeds with their interval. Median, worst and best are over all victims, rounds and seeds. One failed
    attack leaves the row without any of them, and says how many of how many there are.

    Raises:
        Refused: if an arm can't be averaged; :meth:`Results.split` gives those that can.
    """
    arms = results.arms()
    rows = [(a, x, m) for a in arms for x in a.adversaries for m in a.measures(x) if m in MEASURES]
    if not rows:
        return None
    columns = _columns(rows)
    cells = tuple(tuple(cell(r) for _, cell in columns) for r in rows)
    return Table(tuple(h for h, _ in columns), cells, tuple(_notes(rows)), tuple(_record(r, rows) for r in rows))


def verdict(gain: Estimate | None) -> str:
    """``yes``, ``unclear`` (its 95% interval over seeds holds 0), ``NO``, or ``—`` where there is no number.

    One seed has no interval: ``yes (n=1)``, by however little.
    """
    if gain is None or gain.mean is None:
        return "—"
    if gain.mean <= 0:
        return "NO"
    if gain.half_width is None:
        return "yes (n=1)"
    return "yes" if gain.mean > gain.half_width else "unclear"


def _columns(rows: list[Row]) -> list[Column]:
    columns: list[Column] = [("defense", lambda r: r[0].defense)]
    if any(a.poisoned for a, *_ in rows):
        columns.append(("poisoning", lambda r: r[0].poisoning if r[0].poisoned else "—"))
    if any(a.more for a, *_ in rows):
        columns.append(("setting", lambda r: "\n".join(r[0].more)))
    columns += [("seen by", lambda r: words(r[1])), ("n", lambda r: f"n={r[0].n}"), ("attacks", _attacks)]
    for measure in (m for m in MEASURES if any(m == r[2] for r in rows)):
        columns += _scores(measure, rows)
    columns.append(("better than\nguessing", lambda r: verdict(r[0].gain(r[2], r[1]))))
    if _there(rows, "identified"):
        columns.append(("rank\n(chance)", _beside("identification_rank", "identification_rank_chance", number)))
        columns.append(("identified\n(%, chance)", _beside("identified", "identified_chance", _percent)))
    columns.append(("labels\n(%, majority)", _labels))
    return columns


def _scores(measure: str, rows: list[Row]) -> list[Column]:
    """How near reconstructions came by one measure, and guesses by the same."""
    header, digits = MEASURES[measure]

    def of(name: str) -> Callable[[Row], str]:
        return lambda r: number(r[0].leakage(name, r[1]), digits) if r[2] == measure else "—"

    def pooled(name: str, over: Callable[[Sequence[float]], float]) -> Callable[[Row], str]:
        return lambda r: _shown(r[0].pooled(f"{measure}_{name}", r[1]), over, digits) if r[2] == measure else "—"

    def best(r: Row) -> str:
        found = r[0].best_baseline(measure, r[1]) if r[2] == measure else None
        return "—" if found is None else f"{number(found[1], digits).split(' ')[0]}\n{words(found[0])}"

    last, first = (max, min) if measure in LOWER else (min, max)
    columns: list[Column] = [(header, of(measure))]
    columns.append((f"best trivial\n{header.splitlines()[0]}", best))
    columns += [("median", pooled("median", median)), ("worst", pooled("worst", last)), ("best", pooled("best", first))]
    if measure == "psnr_db":
        for name in _rates(rows):
            columns.append((f"≥ {_threshold(name)} dB\n(%)", lambda r, n=name: _share(r[0].leakage(n, r[1]))))
        columns.append(("SSIM", lambda r: number(r[0].leakage("ssim", r[1]), 2)))
        if _there(rows, "lpips"):
            columns.append(("LPIPS", lambda r: number(r[0].leakage("lpips", r[1]), 3)))
    columns.append(("oracle", of(f"{measure}_oracle")))
    if _there(rows, f"{measure}_same_label"):
        columns.append(("same label", of(f"{measure}_same_label")))
    return columns


def _there(rows: list[Row], metric: str) -> bool:
    return any(a.leakage(metric, x).state != "absent" for a, x, _ in rows)


def _rates(rows: list[Row]) -> list[str]:
    names = {m.name for a, *_ in rows for r in a.runs for m in r.metrics if RATE.fullmatch(m.name)}
    return sorted(names, key=lambda n: float(_threshold(n)))


def _threshold(name: str) -> str:
    found = RATE.fullmatch(name)
    assert found is not None
    return found[1]


def _attacks(row: Row) -> str:
    arm, adversary, measure = row
    (done, made), (lost, _) = arm.attacks(measure, adversary), arm.unattacked(measure, adversary)
    return (f"{done} of {made}" + (f"\n+ {lost} n/a" if lost else "")) if made else "n/a"


def _shown(values: Sequence[float], over: Callable[[Sequence[float]], float], digits: int) -> str:
    return f"{over(values):.{digits}f}" if values else "—"


def _beside(metric: str, control: str, show: Callable[[Estimate, int], str]) -> Callable[[Row], str]:
    """A number above its control."""

    def cell(row: Row) -> str:
        arm, adversary, _ = row
        below = show(arm.leakage(control, adversary), 1).split(" ")[0]
        return f"{show(arm.leakage(metric, adversary), 1)}\n({below})"

    return cell


def _percent(found: Estimate, digits: int) -> str:
    return _share(found)


def _share(found: Estimate) -> str:
    """In percent, without an interval: a t-interval of a share of so few records is none."""
    return percent(found).split(" ")[0]


def _labels(row: Row) -> str:
    """Label accuracy above that of the commonest class; what was told isn't found."""
    arm, adversary, _ = row
    said = {m.more.get("labels") for r in arm.runs for m in r.rows("label_accuracy", adversary)}
    return "known" if said == {"known"} else _beside("label_accuracy", "label_accuracy_majority", _percent)(row)


def _record(row: Row, rows: list[Row]) -> dict[str, object]:
    """One row with full precision; every row has the same keys."""
    arm, adversary, measure = row
    done, made = arm.attacks(measure, adversary)
    record: dict[str, Any] = {"label": arm.label, "defense": arm.defense, "poisoning": arm.poisoning}
    record |= {g: arm.runs[0].choices.get(g) for g in ("task", "model", "federation", "leakage", "experiment")}
    record |= {"adversary": adversary, "measure": measure, "n": arm.n, "seeds": " ".join(map(str, arm.seeds))}
    record |= {"runs": " ".join(r.id for r in arm.runs), "attacks": made, "attacks_with_a_value": done}
    record["victims_not_applicable"] = arm.unattacked(measure, adversary)[0]
    record["state"] = arm.leakage(measure, adversary).state
    names = [m for m in MEASURES if any(m == r[2] for r in rows)]
    means = [n for m in names for n in (m, f"{m}_oracle", f"{m}_same_label", *(f"{m}_{g}" for g in GUESSES[m]))]
    means += [*_rates(rows), "ssim", "lpips", "identification_rank", "identification_rank_chance", "identified"]
    means += ["identified_chance", "label_accuracy", "label_accuracy_majority", "gradient_error", "attack_seconds"]
    for name in means:
        # The error of images is recorded in other units, and isn't their measure.
        meant = not name.startswith("mse") or measure == "mse"
        found = arm.leakage(name, adversary) if meant else None
        record |= {f"{name}_mean": found and found.mean, f"{name}_half_width": found and found.half_width}
    last, first = (max, min) if measure in LOWER else (min, max)
    for name, over in (("median", median), ("worst", last), ("best", first)):
        values = arm.pooled(f"{measure}_{name}", adversary)
        record[name] = over(values) if values else None
    best, gain = arm.best_baseline(measure, adversary), arm.gain(measure, adversary)
    record |= {"best_trivial": best and best[0], "best_trivial_mean": best and best[1].mean}
    record |= {"gain_mean": gain and gain.mean, "gain_half_width": gain and gain.half_width}
    return record | {"better_than_guessing": verdict(gain)}


def _notes(rows: list[Row]) -> list[str]:
    notes = ["a ± b: mean over n seeds and half the width of its 95% t-interval; a seed's is over victims and rounds."]
    notes.append("median, worst, best: over the records of all victims, rounds and seeds (of a batch, its own median).")
    notes.append("attacks: those with a value, of those made. One that failed leaves no mean: survivors are no sample.")
    notes.append("oracle: the restart that is best by the truth, which no attacker can choose.")
    if any(a.attacks(m, x)[1] and a.unattacked(m, x)[0] for a, x, m in rows):
        notes.append("+ n/a: victims with nothing to attack are in no number, so rows may be over different victims.")
    said = {verdict(a.gain(m, x)) for a, x, m in rows}
    if "yes (n=1)" in said:
        notes.append("yes (n=1): better than the best trivial guess, by however little: one seed has no interval.")
    if said & {"NO", "unclear"}:
        notes.append("NO: no better than the best trivial guess. unclear: not by more than the interval over seeds.")
    if any(_there(rows, f"{m}_same_label") for m in MEASURES):
        notes.append(
            "same label: reconstructions against other clients' records of the label: what the class alone gives."
        )
    if _there(rows, "identified"):
        notes.append("rank: of the true record among other clients' by MSE to its reconstruction; 1 is the nearest.")
    if any(m == "mse" for *_, m in rows):
        notes.append("MSE: in squared standard deviations; the lower, the more leaks.")
    if any("software TEE" in a.more for a, *_ in rows):
        notes.append("software TEE: the attestation is emulated, and nothing is assured by hardware.")
    for arm, adversary, measure in rows:
        done, made = arm.attacks(measure, adversary)
        reason = arm.reason(measure, adversary)
        if reason and (done < made or not made or arm.unattacked(measure, adversary)[0]):
            notes.append(f"{arm.label}, {words(adversary)}: {str(reason).rstrip('.')}.")
    return list(dict.fromkeys(notes))
