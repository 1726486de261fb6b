"""Which cohorts a run can have had, where its statement says how often one client takes part and whose noise counts.

What no run can have had is a fault; what one can have had is none, however unlikely it is.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from privbench.benchmarks.shares import at_least
from privbench.defenses.accounting import wording


def limits(statement: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Limits on who takes part that settings refuse: a field, and what is wrong with it.

    Args:
        statement: at the client level; its form has been checked, and its normaliser is a number.
    """
    sampling, rounds = statement["sampling"], statement["ledger"]["rounds"]
    expected, clients = statement["mechanism"]["normaliser"], sampling["population"]
    most, apart, size = sampling["most_participations"], sampling["least_separation"], max(1, round(expected))
    # A fixed size stands for every share that is rounded to it: the least of them needs the lowest cap. Cohorts are
    # smaller where too few are left, so that their size times the rounds may be more than all may take part together.
    lowest = expected if sampling["scheme"] == "poisson" else size - 0.5 if size > 1 else 0.0
    mean = at_least(lowest / clients * (1 - 1e-9), rounds)
    if most is not None and mean > most:
        why = f"with {expected:g} of {clients} clients expected in each of {rounds} rounds"
        yield "sampling: most_participations", f"{most}: at least {mean} {why}"
    if size * apart > clients:
        yield "sampling: least_separation", f"{apart}: at most {clients // size}, with {size} of {clients} in a cohort"


def shares(statement: Mapping[str, Any]) -> int:
    """How many clients' noise a sum can hold for sure: a cohort's, or only one's own where cohorts vary."""
    sampling, expected = statement["sampling"], statement["mechanism"]["normaliser"]
    if isinstance(expected, str):
        return 1
    limited = sampling["most_participations"] is not None or sampling["least_separation"] > 1
    drawn = sampling["scheme"] == "poisson" and expected < sampling["population"]
    return 1 if limited or drawn else max(1, round(expected))


def opened(statement: Mapping[str, Any], sizes: Sequence[int], clients: int) -> str | None:
    """Why cohorts of these sizes, by round, aren't of this run; ``None`` if they can be.

    Args:
        clients: in the federation.
    """
    least = max((wording.counted_on(c.get("assumes", "")) for c in statement["claims"]), default=0)
    if min(sizes, default=least) < least:
        return f"a cohort of {min(sizes)}: every sum is said to hold the noise of at least {least} clients"
    most, apart = statement["sampling"]["most_participations"], int(statement["sampling"]["least_separation"])
    if most is not None and sum(sizes) > clients * most:
        return f"{sum(sizes)} participations: {clients} clients take part in {most} rounds at most"
    # Cohorts up to each round, less those of the rounds that lie far enough back.
    upto = [0, *accumulate(sizes)]
    largest = max((total - upto[max(0, n - apart)] for n, total in enumerate(upto)), default=0)
    if largest > clients:
        return f"{largest} participations in {apart} rounds in a row, and each of {clients} clients is in one at most"
    return None
