"""What a guarantee costs and what it stops: utility, leakage, membership and backdoors against epsilon.

Columns are a unit and an adversary each, since epsilons of two kinds don't compare; rows are measures. Runs with a
poisoner give the success of backdoors alone, runs without one everything else.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from typing import Any

from matplotlib.figure import Figure

from privbench.benchmarks.federation.view import ADVERSARIES
from privbench.benchmarks.results.arms import Arm, Estimate, cut_short
from privbench.benchmarks.results.curves import Point, beside, draw_line, label_ticks, places_of
from privbench.benchmarks.results.inference import of_no_membership
from privbench.benchmarks.results.leakage_curves import elsewhere, epsilon_of, family, names_of, without
from privbench.benchmarks.results.load import Results
from privbench.benchmarks.results.matrix import attack_names
from privbench.benchmarks.results.style import legend_shape, new, seeds, style, words, wrap
from privbench.benchmarks.results.tabular import Table, at_most, number

NAME = "frontier"
APART = ("defense", "poisoning", "inference", "leakage")
"""What runs of one frontier differ in."""
REFERENCE = "nothing found, or guessed"


@dataclass(frozen=True)
class Measure:
    """A row.

    Args:
        name: of the metric.
        label: of the axis.
        poisoned: whether it is of runs with a poisoner.
        scale: by which it is drawn.
        reference: what stands for no success: of an arm and an adversary.
        by: the group of settings whose success it is, if it isn't the model's.
        attack: of which poisoner or attack alone, where there are several.
    """

    name: str
    label: str
    poisoned: bool = False
    scale: float = 1.0
    reference: Callable[[Arm, str], float | None] = field(default=lambda arm, adversary: 0.0)
    by: str | None = None
    attack: str | None = None

    @property
    def key(self) -> str:
        """The metric, with its attack where there are several."""
        return self.name if self.attack is None else f"{self.name} {self.attack}"

    def of(self, arm: Arm, adversary: str) -> Estimate:
        """Its value against the adversary, or of the model."""
        general = self.name in ("accuracy", "asr")
        found = arm.final(self.name) if general else arm.leakage(self.name, adversary)
        return replace(found, values=tuple(self.scale * v for v in found.values))


def _guess(metric: str) -> Callable[[Arm, str], float | None]:
    def best(arm: Arm, adversary: str) -> float | None:
        found = arm.best_baseline(metric, adversary)
        return found[1].mean if found else None

    return best


MEASURES = (
    Measure("accuracy", "accuracy (%)", scale=100, reference=lambda arm, _: _percent(arm.runs[0].chance)),
    Measure("psnr_db", "PSNR (dB)", reference=_guess("psnr_db"), by="leakage"),
    Measure("mse", "MSE\n(lower leaks more)", reference=_guess("mse"), by="leakage"),
    Measure("membership_advantage", "membership\nadvantage", reference=of_no_membership, by="inference"),
    Measure("asr", "attack success (%)", poisoned=True, scale=100, by="poisoning"),
)


@dataclass(frozen=True)
class Panel:
    """One measure against one kind of epsilon.

    Args:
        measure, unit, adversary: of what and against whom.
        lines: by defense ``(epsilon, arm, value)``, ascending; infinite is no guarantee.
        reference: the value of no success, where the arms agree on one.
    """

    measure: Measure
    unit: str
    adversary: str
    lines: Mapping[str, Sequence[Point]]
    reference: float | None

    @property
    def curve(self) -> bool:
        """Whether a line has two epsilons."""
        return any(len({x for x, *_ in points if isfinite(x)}) > 1 for points in self.lines.values())


def panels(results: Results) -> Iterator[list[Panel]]:
    """Those of each setup that has a defense with several epsilons and two measures of it.

    Raises:
        Refused: if an arm can't be averaged.
    """
    setups: dict[str, list[Arm]] = {}
    for arm in results.arms():
        setups.setdefault(without(arm.runs[0].settings, APART), []).append(arm)
    for arms in setups.values():
        stated = {p for a in arms for p, said in a.guarantees().items() if isfinite(said.epsilon)}
        # Nothing is measured against who has no view, such as a reader of receipts.
        pairs = sorted((unit, adversary) for unit, adversary in stated if adversary in ADVERSARIES)
        found = [_panel(chosen, m, *pair) for measure in MEASURES for m, chosen in _of(arms, measure) for pair in pairs]
        kept = [p for p in found if p.lines]
        if any(p.curve for p in kept) and len({p.measure.name for p in kept if p.curve}) > 1:
            yield kept


def _of(arms: Sequence[Arm], measure: Measure) -> Iterator[tuple[Measure, list[Arm]]]:
    """Arms of which it is a measure; of several attacks each by itself, since their success is of no one curve."""
    mine = [a for a in arms if a.poisoned == measure.poisoned]
    if measure.by is None:
        yield measure, mine
        return
    tried = [a for a in mine if _tried(a, measure)]
    names = attack_names(tried, measure.by)
    attacks = dict.fromkeys(names.values())
    for attack in attacks:
        chosen = [a for a in mine if names.get(a.key) == attack]
        label = f"{measure.label}\n{wrap(attack, 22)}"
        yield (replace(measure, label=label, attack=attack) if len(attacks) > 1 else measure), chosen


def _tried(arm: Arm, measure: Measure) -> bool:
    return any(m.name == measure.name for r in arm.runs for m in r.metrics)


def _panel(arms: Sequence[Arm], measure: Measure, unit: str, adversary: str) -> Panel:
    lines: dict[str, dict[float, tuple[Arm, Estimate]]] = {}
    references: set[float] = set()
    for arm in arms:
        audited = any(r.manifest.get("canaries") for r in arm.runs)
        if elsewhere(arm, unit, adversary) or audited:
            continue
        value = measure.of(arm, adversary)
        if value.state != "absent":
            # Arms that differ in what is measured alone have trained the same model.
            # A control by another name, clipping alone, is no point of the defense's line.
            lines.setdefault(f"{arm.defense} {family(arm)}", {}).setdefault(
                epsilon_of(arm, unit, adversary), (arm, value)
            )
            known = measure.reference(arm, adversary)
            references |= set() if known is None else {known}
    ordered = {k: [(x, *at[x]) for x in sorted(at)] for k, at in lines.items()}
    names = names_of(ordered)
    reference = max(references) if references and measure.name != "mse" else min(references, default=None)
    return Panel(measure, unit, adversary, {names[k]: points for k, points in ordered.items()}, reference)


def draw(found: Sequence[Panel]) -> Figure:
    """Means over seeds with their 95% t-interval; what has no guarantee stands at ∞."""
    pairs = list(dict.fromkeys((p.unit, p.adversary) for p in found))
    measures = list(dict.fromkeys(p.measure for p in found))
    labels = list(dict.fromkeys(name for p in found for name in p.lines))
    places = places_of(sorted({x for p in found for points in p.lines.values() for x, *_ in points}), log=True)
    free = [n for n in labels if any(x == inf for p in found for x, *_ in p.lines.get(n, ()))]
    arms = list({a.key: a for p in found for points in p.lines.values() for _, a, _ in points}.values())
    with style():
        width, height = 1.0 + 2.0 * len(pairs), 0.8 + 1.25 * len(measures)
        figure = new(width, height)
        grid = figure.subplots(len(measures), len(pairs), sharex=True, sharey="row", squeeze=False)
        missing = dict.fromkeys((m, p) for m in measures for p in pairs)
        for panel in found:
            pair = (panel.unit, panel.adversary)
            missing.pop((panel.measure, pair))
            axes = grid[measures.index(panel.measure)][pairs.index(pair)]
            for name, points in panel.lines.items():
                aside = (free.index(name) - (len(free) - 1) / 2) / max(len(free), 4) if name in free else 0.0
                draw_line(axes, points, name, labels.index(name), beside(places, aside))
            if panel.reference is not None:
                axes.axhline(panel.reference, color="#555555", linestyle=":", label=REFERENCE, zorder=0)
        for measure, pair in missing:
            grid[measures.index(measure)][pairs.index(pair)].set_visible(False)
        for (unit, adversary), axes in zip(pairs, grid[0], strict=True):
            axes.set_title(wrap(f"{unit}-level, against {words(adversary)}", 30))
        for measure, axes in zip(measures, grid[:, 0], strict=True):
            axes.set_ylabel(measure.label)
            if measure.name == "mse":
                axes.set_yscale("log", nonpositive="clip")
            elif measure.name in ("psnr_db", "asr"):
                axes.set_ylim(bottom=0)  # an interval may reach below, they can't
        label_ticks(grid.flat, places, log=True)
        for column in grid.T:
            lowest = [axes for axes in column if axes.get_visible()][-1]
            lowest.set_xlabel("ε against the same adversary")
            lowest.tick_params(labelbottom=True)
        simulated = any(s.simulated for a in arms for s in a.guarantees().values())
        figure.suptitle("; ".join(filter(None, [seeds(arms), simulated and "noise simulated from a seed"])), fontsize=7)
        entries = {label: h for axes in grid.flat for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        shown = sorted(entries, key=lambda label: label == REFERENCE)
        columns, wrapped, more = legend_shape(shown, width)
        figure.set_size_inches(width, height + more)
        figure.legend([entries[n] for n in shown], wrapped, loc="outside lower center", ncols=columns)
    return figure


def frontier_table(results: Results) -> Table | None:
    """One row a defense, epsilon, unit and adversary, with every measure; ``None`` where there is no frontier.

    A row's n and seeds are those of accuracy. Runs with a poisoner may have others: a measure that does names them.
    """
    every = [p for found in panels(results) for p in found]
    if not every:
        return None
    measures = list(dict.fromkeys(p.measure for p in every))
    rows: dict[tuple[Any, ...], dict[str, tuple[Arm, Estimate]]] = {}
    references: dict[tuple[str, str], dict[str, float]] = {}
    for panel in every:
        for name, points in panel.lines.items():
            for x, arm, value in points:
                setup = without(arm.runs[0].settings, APART)
                rows.setdefault((setup, panel.unit, panel.adversary, name, x), {})[panel.measure.key] = (arm, value)
                if panel.reference is not None and panel.measure.name != "asr":
                    references.setdefault((setup, panel.adversary), {})[panel.measure.key] = panel.reference
    headers = ("task", "unit", "against", "defense", "ε", "n", *(m.label.replace("\n", " ") for m in measures))
    cells, records = [], []
    for key, found in rows.items():
        setup, unit, adversary, name, x = key
        arm = next(found[k][0] for k in ("accuracy", *found) if k in found)
        stated = arm.guarantees().get((unit, adversary))
        task = str(arm.runs[0].choices.get("task") or "—")
        shown = tuple(_cell(m, *found[m.key], arm) if m.key in found else "—" for m in measures)
        cells.append((task, unit, words(adversary), name, at_most(x), f"n={arm.n}", *shown))
        records.append(
            {
                "task": task,
                "unit": unit,
                "adversary": adversary,
                "adjacency": stated.adjacency if stated else None,
                "defense": name,
                "epsilon": None if x == inf else x,
                "delta": stated.delta if stated else None,
                "simulated_population": False,
                "seeds": _seeds(arm),
                **{m.key: found[m.key][1].mean if m.key in found else None for m in measures},
                **{f"{m.key}_half_width": found[m.key][1].half_width if m.key in found else None for m in measures},
                **{f"{m.key}_seeds": _seeds(found[m.key][0]) if m.key in found else None for m in measures},
                **{f"{m.key}_reference": references.get((setup, adversary), {}).get(m.key) for m in measures},
                "rounds": arm.rounds_done,
            }
        )
    notes = ["a ± b: mean and 95% t-interval over seeds."]
    notes.append("No epsilon here presumes a larger population than was simulated.")
    tasks = {k[0]: str(arm.runs[0].choices.get("task")) for k, found in rows.items() for arm, _ in found.values()}
    for (setup, adversary), values in references.items():
        said = ", ".join(f"{m.label.replace(chr(10), ' ')} {values[m.key]:.3g}" for m in measures if m.key in values)
        notes.append(f"{REFERENCE}, {tasks[setup]}, against {words(adversary)}: {said}.")
    notes += cut_short({a.key: a for found in rows.values() for a, _ in found.values()}.values())
    return Table(headers, tuple(cells), tuple(notes), tuple(records))


def _cell(measure: Measure, arm: Arm, value: Estimate, row: Arm) -> str:
    """The value, and its seeds where they aren't the row's."""
    shown = number(value, 1 if measure.scale > 1 or measure.name == "psnr_db" else 3)
    return shown if arm.seeds == row.seeds else f"{shown} (seed{'s' if arm.n > 1 else ''} {_seeds(arm)})"


def _seeds(arm: Arm) -> str:
    return " ".join(map(str, arm.seeds))


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
