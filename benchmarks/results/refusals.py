"""Messages that an attested aggregator refused, by name, and in how many of an arm's rounds."""

from collections import Counter

from privbench.benchmarks.results.arms import Arm

PREFIX = "refused_"


def refusals(arm: Arm) -> dict[str, int]:
    """Rounds, over all seeds, in which a message was refused, by the refusal's name; most frequent first."""
    rounds = {(m.name, r.id, m.round) for r in arm.runs for m in r.metrics if m.name.startswith(PREFIX)}
    return dict(Counter(name.removeprefix(PREFIX) for name, *_ in sorted(rounds)).most_common())


def refusing(arm: Arm) -> bool:
    """Whether the arm's channel refuses messages at all."""
    return any(r.rows("refused") for r in arm.runs)


def rounds(arm: Arm) -> int:
    """Rounds of all seeds together."""
    return sum(len(r.series("refused")) for r in arm.runs)


def refused(arm: Arm) -> str:
    """``wrong_training_code 20/20``, one line a name; ``none`` for an arm that refused nothing, ``—`` for one that
    can't."""
    if not refusing(arm):
        return "—"
    return "\n".join(f"{name} {n}/{rounds(arm)}" for name, n in refusals(arm).items()) or "none"
