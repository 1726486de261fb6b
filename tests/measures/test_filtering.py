"""Whom a rule dropped, as rows: counted among those who answered, and never a rate of nobody."""

import math
from typing import Any

import pytest
import torch

from privbench.benchmarks.federation.loop import Round
from privbench.benchmarks.federation.server import Released, ServerState
from privbench.benchmarks.federation.usage import RoundUsage
from privbench.benchmarks.measures.filtering import rows

MODEL = torch.zeros(1)
TRUE, FALSE = "filter_true_positive_rate", "filter_false_positive_rate"

NOTHING = RoundUsage({}, 0.0, None)


def measured(
    answered: tuple[int, ...], attackers: set[int] | frozenset[int] = frozenset(), **extras: Any
) -> list[dict[str, Any]]:
    """The rows of a round 3 to which clients 0 to 7 were invited."""
    released = Released(MODEL, {name: torch.as_tensor(value) for name, value in extras.items()})
    finished = Round(3, ServerState(3, MODEL), tuple(range(8)), answered, {}, released, NOTHING)
    found = list(rows(finished, frozenset(attackers)))
    assert all(row["round"] == 3 for row in found)
    return found


def values(found: list[dict[str, Any]]) -> dict[str, Any]:
    return {row["metric"]: row["value"] for row in found}


@pytest.mark.parametrize(
    ("kept", "true", "false"),
    [
        ([0, 1, 2, 3, 4, 5], 1.0, 0.0),
        ([0, 1, 2, 3, 4, 5, 6, 7], 0.0, 0.0),
        ([0, 1, 2, 6], 0.5, 0.5),
        ([6, 7], 0.0, 1.0),
        ([], 1.0, 1.0),
    ],
)
def test_rates_at_known_attackers(kept: list[int], true: float, false: float):
    found = measured(tuple(range(8)), {6, 7}, kept=torch.tensor(kept, dtype=torch.int64))
    assert values(found) == {"kept": len(kept), TRUE: true, FALSE: false}


def test_who_did_not_answer_is_not_counted():
    # Of the attackers 5, 6 and 7 only 6 sent something; of the honest 0, 1 and 2.
    found = values(measured((0, 1, 2, 6), {5, 6, 7}, kept=[0, 1, 6]))
    assert found == {"kept": 3, TRUE: 0.0, FALSE: pytest.approx(1 / 3)}


def test_no_rate_of_nobody():
    honest = values(measured((0, 1, 2), set(), kept=[0, 1]))
    assert honest == {"kept": 2, FALSE: pytest.approx(1 / 3)}
    absent = values(measured((0, 1, 2), {7}, kept=[0, 1, 2]))
    assert absent == {"kept": 3, FALSE: 0.0}
    alone = values(measured((6, 7), {6, 7}, kept=[7]))
    assert alone == {"kept": 1, TRUE: 0.5}
    assert values(measured((), {7}, kept=torch.zeros(0, dtype=torch.int64))) == {"kept": 0}


def test_screened_clients_by_name():
    found = measured((0, 1, 2, 6), {6}, screened=[2, 6])
    assert [(row["metric"], row["client"], row["value"]) for row in found] == [("screened", 2, 1), ("screened", 6, 1)]
    assert measured((0, 1), screened=torch.zeros(0, dtype=torch.int64)) == []


def test_who_was_screened_was_dropped():
    found = values(measured((0, 1, 2, 6), {6}, screened=[2, 6], kept=[0, 1]))
    assert (found[TRUE], found[FALSE]) == (1.0, pytest.approx(1 / 3))


def test_other_extras_pass_through_as_numbers():
    found = measured((0, 1), clipped_share=0.25, cohort_too_small=1.0, screened=[1])
    assert values(found) == {"screened": 1, "clipped_share": 0.25, "cohort_too_small": 1.0}
    assert all(isinstance(row["value"], float) for row in found if row["metric"] != "screened")
    assert math.isnan(values(measured((0,), other=math.nan))["other"]), "the run refuses it by name"


def test_extras_stay_as_they_are():
    extras = {"screened": torch.tensor([1]), "kept": torch.tensor([0])}
    released = Released(MODEL, extras)
    list(rows(Round(1, ServerState(1, MODEL), (0, 1), (0, 1), {}, released, NOTHING), frozenset()))
    assert set(released.extras) == {"screened", "kept"}
