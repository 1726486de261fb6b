"""Whom a rule left out, and whether it was right to."""

from collections.abc import Iterator
from typing import Any

from privbench.benchmarks.federation.loop import Round


def rows(finished: Round, attackers: frozenset[int]) -> Iterator[dict[str, Any]]:
    """What the aggregation rule said of a round.

    ``screened``: a client whose update was not finite or absurdly long, one row each. Of a rule that keeps some updates
    and drops others: ``kept``, how many; ``filter_true_positive_rate``, the share of the attackers who sent something
    that were dropped, and ``filter_false_positive_rate``, that of honest clients. A rate of nobody is left out.

    Args:
        finished: the round.
        attackers: the poisoner's clients.
    """
    extras, number = dict(finished.released.extras), finished.round
    screened = [int(c) for c in extras.pop("screened", ())]
    for client in screened:
        yield {"metric": "screened", "round": number, "client": client, "value": 1}
    kept = extras.pop("kept", None)
    if kept is not None:
        names = {int(c) for c in kept}
        yield {"metric": "kept", "round": number, "value": len(names)}
        crooked = [c for c in finished.answered if c in attackers]
        honest = [c for c in finished.answered if c not in attackers]
        for name, clients in (("true", crooked), ("false", honest)):
            if clients:
                dropped = sum(c not in names for c in clients)
                yield {
                    "metric": f"filter_{name}_positive_rate",
                    "round": number,
                    "value": dropped / len(clients),
                }
    for name, value in extras.items():
        yield {"metric": name, "round": number, "value": float(value)}
