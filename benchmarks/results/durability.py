"""How a backdoor fares over the rounds: peak, area, and how long it outlives the attack."""

from dataclasses import dataclass, fields
from itertools import pairwise

from privbench.attacks.poisoning.schedule import Schedule
from privbench.benchmarks.results.arms import Arm, Estimate, estimate
from privbench.benchmarks.results.load import Results
from privbench.benchmarks.results.runs import Run

ALIVE = 0.5
"""A backdoor with at least this success rate is alive."""


@dataclass(frozen=True)
class Durability:
    """Means over seeds, with their interval.

    Args:
        peak: the largest success rate of any evaluated round, a fraction.
        area: the area under the success rate by round over the width, a fraction: its mean over the run.
        lifespan: rounds after the last attacked one up to the last in a row with a rate of at least :data:`ALIVE`;
            ``absent`` where the attack doesn't stop before the run does.
        survives: whether in some seed the backdoor is alive at the run's end, so that lifespans are at least as long.
    """

    peak: Estimate
    area: Estimate
    lifespan: Estimate
    survives: bool


def durability(arm: Arm) -> Durability:
    """Of one arm; its runs have no ``asr`` where nobody puts a trigger in."""
    series = [run.series("asr") for run in arm.runs]
    lives = [_lifespan(run, rates) for run, rates in zip(arm.runs, series, strict=True)]
    return Durability(
        _over_seeds([max(rates.values(), default=None) for rates in series]),
        _over_seeds([_area(rates) for rates in series]),
        _over_seeds([None if life is None else float(life[0]) for life in lives]),
        any(life is not None and life[1] for life in lives),
    )


def change(arm: Arm, metric: str, results: Results) -> Estimate:
    """By how much the poisoner changed a final metric, seed by seed, under the same defense; negative is worse.

    ``absent`` without all runs without the poisoner.
    """
    if not arm.poisoned:
        return estimate([])
    twins = [results.twin(run) for run in arm.runs]
    pairs = [
        (run.final(metric), None if twin is None else twin.final(metric))
        for run, twin in zip(arm.runs, twins, strict=True)
    ]
    return _over_seeds([None if mine is None or plain is None else mine - plain for mine, plain in pairs])


def _over_seeds(values: list[float | None]) -> Estimate:
    return estimate([("absent" if v is None else "ok", v) for v in values])


def _area(rates: dict[int, float]) -> float | None:
    """By the trapezoid rule; of a single round its rate."""
    if not rates:
        return None
    points = sorted(rates.items())
    width = points[-1][0] - points[0][0]
    if width == 0:
        return points[0][1]
    return sum((b - a) * (x + y) / 2 for (a, x), (b, y) in pairwise(points)) / width


def stops(run: Run) -> int | None:
    """The last round that its schedule attacks, if the run goes on after the schedule's ``stop``."""
    poisoning = run.settings.get("poisoning") or {}
    schedule = poisoning.get("schedule") or {}
    stop, last = schedule.get("stop"), max(run.series("asr"), default=0)
    if not isinstance(stop, int) or stop >= last:
        return None
    # Of every so many rounds, or at random, the last may be before the stop.
    plan = Schedule(**{f.name: schedule[f.name] for f in fields(Schedule) if f.name in schedule})
    return max((n for n in range(plan.start, stop + 1) if plan.attacks(n, run.seed)), default=None)


def _lifespan(run: Run, rates: dict[int, float]) -> tuple[int, bool] | None:
    """How many rounds, and whether it is still alive in the last."""
    stop = stops(run)
    if stop is None:
        return None
    after = [(number, rate) for number, rate in sorted(rates.items()) if number > stop]
    alive = stop
    for number, rate in after:
        if rate < ALIVE:
            return alive - stop, False
        alive = number
    return alive - stop, True
