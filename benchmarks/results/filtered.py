"""Whom rules that keep some updates dropped: their true and false positive rate, and what they were told of f."""

from collections.abc import Callable, Mapping

from privbench.benchmarks.results.arms import Arm, Estimate, estimate
from privbench.benchmarks.results.tabular import percent

RATES = {"attackers": "filter_true_positive_rate", "honest": "filter_false_positive_rate"}


def rate(arm: Arm, metric: str) -> Estimate:
    """The mean over all rounds in which somebody could be dropped, seed by seed."""
    return estimate([run.mean(metric) for run in arm.runs])


def columns(arms: list[Arm]) -> list[tuple[str, Callable[[Arm], str]]]:
    """``attackers dropped`` and ``honest dropped`` in percent, where some arm with a poisoner has such a rule."""

    def column(who: str, metric: str) -> tuple[str, Callable[[Arm], str]]:
        return f"{who}\ndropped (%)", lambda arm: percent(rate(arm, metric))

    if not any(a.poisoned and rate(a, m).state == "ok" for a in arms for m in RATES.values()):
        return []
    return [column(who, metric) for who, metric in RATES.items()]


def told(arm: Arm) -> tuple[int | None, int]:
    """The f that the arm's rule was told (``None``: it isn't told any), and how many attackers there are."""
    manifest = arm.runs[0].manifest
    defense = (manifest.get("config") or {}).get("defense")
    rule = defense.get("aggregation") if isinstance(defense, Mapping) else None
    f = rule.get("f") if isinstance(rule, Mapping) else None
    return (f if isinstance(f, int) else None), len((manifest.get("poisoner") or {}).get("clients") or ())


def notes(arms: list[Arm]) -> list[str]:
    """What the columns are, and which rules were told a wrong number."""
    found = []
    if columns(arms):
        found.append(
            "attackers, honest dropped: true and false positive rate of the rule's filter, mean over rounds; without "
            "attackers whoever it drops is honest."
        )
    wrong = [f"{a.label} (f={f} of {n})" for a in arms for f, n in [told(a)] if a.poisoned and f not in (None, n)]
    if wrong:
        found.append(f"the rule was told another number of attackers than there are: {'; '.join(wrong)}.")
    return found
