"""Figures of leakage against one setting: epsilon, records behind an update, local steps or epochs, the round.

A figure joins the arms that differ in exactly that setting; the defense is the colour, and a panel has one adversary
and one unit of epsilon. Clients a round have a figure of their own, in :mod:`.cohorts`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from privbench.benchmarks.build import canonical
from privbench.benchmarks.results.arms import LOWER, Arm, flatten, group
from privbench.benchmarks.results.curves import MEASURES, Curves, Panel, Point, draw, place
from privbench.benchmarks.results.load import Results
from privbench.benchmarks.results.style import comparable, words
from privbench.benchmarks.results.unattacked import unattacked

BUDGET = ("privacy.epsilon", "privacy.noise_multiplier")
"""The settings of a defense that epsilon follows from."""


@dataclass(frozen=True)
class Axis:
    """A setting to draw leakage against.

    Args:
        name, xlabel: of the figure.
        paths: settings of which exactly one differs.
        value: what an arm has of it in the attacks of an adversary.
    """

    name: str
    xlabel: str
    paths: tuple[str, ...]
    value: Callable[[Arm, str, str], float | None]


def records(arm: Arm, adversary: str, path: str) -> float | None:
    """True records behind an attacked update, on average over victims, rounds and seeds."""
    rows = (m for r in arm.runs for name in MEASURES for m in r.rows(name, adversary))
    found = [float(m.more["records"]) for m in rows if m.more.get("records") is not None]
    return fmean(found) if found else None


def configured(arm: Arm, adversary: str, path: str) -> float | None:
    """The setting itself."""
    value = flatten(arm.runs[0].manifest.get("config") or {}).get(path, flatten(arm.runs[0].settings).get(path))
    return float(value) if isinstance(value, int | float) else None


SIZES = ("federation.local.batch_size", "task.partition.sizes", "task.records", "federation.clients")
AXES = (
    Axis("leakage_by_records", "records behind an attacked update", SIZES, records),
    Axis("leakage_by_steps", "local steps", ("federation.local.steps",), configured),
    Axis("leakage_by_epochs", "local epochs", ("federation.local.epochs",), configured),
)


def leakage_curves(results: Results) -> Iterator[tuple[str, Figure]]:
    """Name and figure of all curves that ``results`` hold; several setups have several of a name.

    Raises:
        Refused: if an arm can't be averaged.
    """
    arms = results.arms()
    for curves in (*by_epsilon(arms), *(c for axis in AXES for c in by_setting(arms, axis)), *by_round(arms)):
        yield curves.name, draw(curves)


def by_setting(arms: Sequence[Arm], axis: Axis) -> Iterator[Curves]:
    """Curves over arms that differ in one of the axis' settings, and in defense."""
    for path in axis.paths:
        for members in alike(arms, lambda a, path=path: without(a.runs[0].settings, ("defense", "poisoning", path))):
            for metric in MEASURES:
                found = []
                for adversary in _adversaries(members, metric):
                    points = [(axis.value(a, adversary, path), a) for a in members if metric in a.measures(adversary)]
                    placed = [(x, a) for x, a in points if x is not None]
                    found += _panel(f"seen by {words(adversary)}", placed, metric, adversary, _defense)
                if found:
                    yield Curves(axis.name, axis.xlabel, metric, tuple(found))


def by_epsilon(arms: Sequence[Arm]) -> Iterator[Curves]:
    """Curves over arms of one setup, of which some differ in epsilon alone, with their accuracy below.

    Arms without a guarantee stand at ∞; those with one of another unit against the same adversary have another panel.
    """
    for members in alike(arms, lambda a: a.runs[0].setup_key):
        for metric in MEASURES:
            found = []
            for unit, adversary in sorted({p for a in members for p in a.guarantees()}):
                own = [a for a in members if metric in a.measures(adversary) and not elsewhere(a, unit, adversary)]
                placed = [(epsilon_of(a, unit, adversary), a) for a in own]
                title = f"{unit}-level, seen by {words(adversary)}"
                found += [_with_accuracy(p) for p in _panel(title, placed, metric, adversary, family)]
            if found:
                simulated = any(s.simulated for a in members for s in a.guarantees().values())
                note = "noise simulated from a seed" if simulated else ""
                yield Curves("leakage_by_epsilon", "ε against the same adversary", metric, tuple(found), note=note)


def by_round(arms: Sequence[Arm]) -> Iterator[Curves]:
    """Curves over the attacked rounds, where an adversary attacked several."""
    for members in alike(arms, lambda a: a.runs[0].setup_key, least=1):
        for metric in MEASURES:
            found = []
            for adversary in _adversaries(members, metric):
                lines = {a.label: _rounds(a, metric, adversary) for a in members if metric in a.measures(adversary)}
                guesses: dict[float, float] = {}
                for a in members:
                    best = a.best_baseline(metric, adversary)
                    for n, e in (a.leakage_by_round(f"{metric}_{best[0]}", adversary) if best else {}).items():
                        if e.mean is not None:
                            guesses[n] = _better(metric, guesses.get(n), e.mean)
                if max((len(p) for p in lines.values()), default=0) > 1:
                    guessed, title = dict(sorted(guesses.items())), f"seen by {words(adversary)}"
                    found.append(Panel(title, lines, guessed, unattacked=_unattacked(lines, metric, adversary, True)))
            if found:
                rounds = [x for panel in found for points in panel.lines.values() for x, *_ in points]
                wide = max(rounds) >= 10 * min(rounds)
                yield Curves("leakage_by_round", "round", metric, tuple(found), log=wide)


def alike(arms: Sequence[Arm], key: Callable[[Arm], str], least: int = 2) -> Iterator[list[Arm]]:
    """Arms with equal keys that may be drawn together, ``least`` or more."""
    found: dict[str, list[Arm]] = {}
    for arm in arms:
        found.setdefault(key(arm), []).append(arm)
    for members in found.values():
        kept = comparable(members)
        if len(kept) >= least:
            yield kept


def without(settings: Mapping[str, Any], paths: Iterable[str]) -> str:
    kept = {p: v for p, v in flatten(settings).items() if not any(p == q or p.startswith(f"{q}.") for q in paths)}
    return canonical(kept)


def _defense(arm: Arm) -> str:
    return canonical(arm.runs[0].settings.get("defense") or {})


def family(arm: Arm) -> str:
    return without(arm.runs[0].settings.get("defense") or {}, BUDGET)


def epsilon_of(arm: Arm, unit: str, adversary: str) -> float:
    stated = arm.guarantees().get((unit, adversary))
    return stated.epsilon if stated else inf


def elsewhere(arm: Arm, unit: str, adversary: str) -> bool:
    stated = arm.guarantees()
    return (unit, adversary) not in stated and any(other == adversary for _, other in stated)


def _with_accuracy(panel: Panel) -> Panel:
    """The panel with the accuracy of its runs, and chance where all of them have the same."""
    lines: dict[str, list[Point]] = {}
    for name, points in panel.lines.items():
        for x, arm, _ in points:
            final = arm.final("accuracy")
            lines.setdefault(name, []).append((x, arm, replace(final, values=tuple(100 * v for v in final.values))))
    guessing = {r.chance for points in lines.values() for _, a, _ in points for r in a.runs}
    known = guessing.pop() if len(guessing) == 1 else None
    return replace(panel, accuracy=lines, chance=None if known is None else 100 * known)


def _adversaries(arms: Iterable[Arm], metric: str) -> list[str]:
    return sorted({x for a in arms for x in a.adversaries if metric in a.measures(x)})


def _rounds(arm: Arm, metric: str, adversary: str) -> list[Point]:
    return [(float(n), arm, e) for n, e in arm.leakage_by_round(metric, adversary).items()]


def _better(metric: str, a: float | None, b: float) -> float:
    return b if a is None else min(a, b) if metric in LOWER else max(a, b)


def _panel(
    title: str, placed: list[tuple[float, Arm]], metric: str, adversary: str, line: Callable[[Arm], str]
) -> list[Panel]:
    """The panel, or nothing unless one line has two different values of the setting."""
    lines: dict[str, list[Point]] = {}
    guesses: dict[float, float] = {}
    for x, arm in sorted(placed, key=lambda p: p[0]):
        lines.setdefault(line(arm), []).append((x, arm, arm.leakage(metric, adversary)))
        best = arm.best_baseline(metric, adversary)
        if best is not None and best[1].mean is not None:
            guesses[x] = _better(metric, guesses.get(x), best[1].mean)
    if not any(len({x for x, *_ in points if isfinite(x)}) > 1 for points in lines.values()):
        return []
    names = names_of(lines)
    named = {names[k]: points for k, points in lines.items()}
    return [Panel(title, named, guesses, unattacked=_unattacked(named, metric, adversary))]


def _unattacked(
    lines: Mapping[str, Sequence[Point]], metric: str, adversary: str, by_round: bool = False
) -> Sequence[str]:
    return unattacked(
        (name, place(x), arm.unattacked(metric, adversary, int(x) if by_round else None))
        for name, points in lines.items()
        for x, arm, found in points
        if found.state == "ok"
    )


def names_of(lines: Mapping[str, Sequence[Point]]) -> dict[str, str]:
    """Labels of lines: the defense, and what else tells lines with the same defense apart."""
    firsts = {key: points[0][1] for key, points in lines.items()}
    bare = {key: arm.defense for key, arm in firsts.items()}
    alike = [key for key, name in bare.items() if [*bare.values()].count(name) > 1]
    labels = {a.key: a.label for a in group(r for key in alike for r in firsts[key].runs)}
    named = {key: labels[arm.key] if key in alike else bare[key] for key, arm in firsts.items()}
    emulated = {key: "software TEE" in arm.more and "software TEE" not in named[key] for key, arm in firsts.items()}
    return {key: f"{name} (software TEE)" if emulated[key] else name for key, name in named.items()}
