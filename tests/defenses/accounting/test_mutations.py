"""No field of a statement that its epsilon rests on can be changed alone."""

import copy
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from privbench.defenses.accounting import ClientLevel, ClientPlan, RecordLevel
from privbench.defenses.accounting.consistency import Run
from privbench.defenses.accounting.discrete import Grid
from privbench.defenses.accounting.statement import document
from privbench.defenses.accounting.verification import verify

from .test_verification import SUBJECT, facts

COMMON: dict[str, Any] = {"delta": 1e-3, "clip": 0.5, "noise_multiplier": 2.0}
REPLACED: dict[str, Any] = {**COMMON, "adjacency": "replace", "accountant": "rdp"}
PLANS: dict[str, Any] = {
    "central": ClientLevel(**COMMON).bind(facts()),
    "central, of a fixed size": ClientLevel(**REPLACED).bind(facts(sampling="fixed")),
    "central, adaptive": ClientLevel(**COMMON, adaptive=True).bind(facts(participation=1.0)),
    "central, attested": ClientLevel(**COMMON).bind(facts(operator_reads_updates=False)),
    "correlated": ClientLevel(**COMMON, bands=2).bind(facts(sampling="fixed", separation=2)),
    "local": ClientLevel(**COMMON, noise="local").bind(facts(sampling="fixed")),
    "local, capped": ClientLevel(**COMMON, noise="local").bind(facts(sampling="fixed", cap=3)),
    "distributed": ClientLevel(**COMMON, noise="distributed").bind(facts(participation=1.0, sampling="fixed")),
    "distributed, discrete": ClientLevel(**COMMON, noise="distributed", accountant="rdp")
    .bind(facts(participation=1.0, sampling="fixed", operator_reads_updates=False))
    .on(Grid(2.0**-12, 1000)),
    "record": RecordLevel(**{**COMMON, "delta": 1e-5}).bind(facts(records=(40, 50) * 50)),
    "patient": RecordLevel(**{**COMMON, "delta": 1e-5}, unit="patient").bind(facts(patients=(20,) * 100)),
}

SAYS_NOTHING = "says what the statement is about, or what made it: no number depends on it"
HARMLESS: dict[str, str] = {
    "run": SAYS_NOTHING,
    "nonce": SAYS_NOTHING,
    "previous": SAYS_NOTHING,
    "model": SAYS_NOTHING,
    "software": SAYS_NOTHING,
    "claims/participations_realised": "is what happened, where at most participations_counted are counted",
}
"""By path, without numbers of lists: why a change of it alone can't be told, and doesn't matter."""
OPENED = {"sampling/population", "sampling/population_sha256", "ledger/cohorts_sha256"}
"""Commitments and the size of the population, which the opening shows."""
OF_SINGLE_PLANS: dict[str, dict[str, str]] = {
    name: {
        "sampling/scheme": "nothing is amplified by sampling where clients add the noise",
        "mechanism/normaliser": "what is noised already may be divided by any number",
    }
    for name in ("local", "local, capped", "distributed", "distributed, discrete")
}
OF_SINGLE_PLANS |= {
    name: {"mechanism/operator_reads": "noise is added before anything is sent: claims against both are the same"}
    for name in ("record", "patient")
}
OF_SINGLE_PLANS["distributed, discrete"]["ledger/entries/charge/message_multiplier"] = (
    "no claim is about messages, which this channel hides, and discrete noise is accounted for as a little less"
)


openings: dict[str, str] = {}


@cache
def stated(name: str) -> str:
    plan = PLANS[name]
    rounds = [1, 2, 2, 3, 4, 5]
    ledger = [plan.charge(r, [r, r + 10]) for r in rounds]
    drawn = round(plan.expected) if isinstance(plan, ClientPlan) else 10
    written = document(plan, ledger, [drawn] * 5, SUBJECT)
    openings[name] = json.dumps(written.opening)
    return json.dumps(written.statement)


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield from paths(value[key], (*at, key))


OTHERS = {
    "unit": ("record", "client", "patient"),
    "adjacency": ("replace", "add_remove", "zero_out"),
    "adversary": ("model_recipient", "server_operator", "receipt_reader"),
    "noise_source": ("seeded", "system"),
    "sampling": ("fixed", "poisson", "none"),
    "scheme": ("fixed", "poisson"),
    "operator_reads": ("updates", "sums"),
    "accountant": ("dp-accounting RDP, order 2", "analytic Gaussian mechanism (Balle and Wang 2018)"),
}


def changes(name: Any, value: Any) -> Iterator[Any]:
    """Values that could be there instead."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value - 1, value + 1, 2 * value, 0)
    elif isinstance(value, float):
        yield from (0.5 * value, 0.99 * value, 1.01 * value, 2 * value, 0.0)
    elif isinstance(value, str):
        yield from (o for o in (*OTHERS.get(name, ()), "something else", value + " ") if o != value)
    elif value is None:
        yield from (0.1, 1, 7, "something else")
    elif isinstance(value, list) and value:
        yield from (value[1:], [*value, value[0]])
    if value is not None:
        yield None


def claims_less(path: tuple[Any, ...], old: Any, new: Any) -> bool:
    """Whether the change only claims less than what holds."""
    name = path[-1]
    if name in ("epsilon", "rdp_epsilon", "epsilon_replace_one") and path[0] == "claims":
        return new is None or (old is not None and new >= old)
    return (name, new) == ("simulated", True)


def mutants(name: str) -> Iterator[tuple[tuple[Any, ...], Any, Any, dict[str, Any]]]:
    original = json.loads(stated(name))
    for path in paths(original):
        holder = original
        for key in path[:-1]:
            holder = holder[key]
        drop = [None] if isinstance(holder, dict) else []
        old = holder[path[-1]]
        for new in [*(c for c in changes(path[-1], old) if c != old), *([...] if drop else [])]:
            made = copy.deepcopy(original)
            inside: Any = made
            for key in path[:-1]:
                inside = inside[key]
            if new is ...:
                del inside[path[-1]]
            else:
                inside[path[-1]] = new
            yield path, new, old, made


def harmless(name: str, path: tuple[Any, ...], new: Any, old: Any, made: dict[str, Any]) -> bool:
    plain = "/".join(str(k) for k in path if not isinstance(k, int))
    if any(plain == h or plain.startswith(f"{h}/") for h in (*HARMLESS, *OF_SINGLE_PLANS.get(name, ()))):
        return True
    if plain == "claims/accountant" and isinstance(new, str):
        return new.partition(",")[0] == old.partition(",")[0]  # parameters of a value that is recomputed
    if plain in ("sampling/most_participations", "sampling/least_separation") and new is not ...:
        return Run(made).counted == Run(json.loads(stated(name))).counted  # a limit that nobody reaches
    return new is not ... and claims_less(path, old, new)


def accepted(name: str) -> list[str]:
    """Changes that are taken for the run's own, and aren't known to be harmless."""
    found = []
    for path, new, old, made in mutants(name):
        opened = "/".join(map(str, path)) in OPENED
        wrong = [c for c in verify(made, json.loads(openings[name]) if opened else None) if c.fault is not None]
        if not wrong and not harmless(name, path, new, old, made):
            found.append(f"{'/'.join(map(str, path))}: {old!r} -> {new!r}")
    return found


SLOW = {"central, of a fixed size", "patient", "local, capped"}
"""Seconds each, and like another."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in PLANS])
def test_a_field_that_is_changed_alone_is_refused(name):
    statement, opening = json.loads(stated(name)), json.loads(openings[name])
    assert [c for c in verify(statement) if c.fault] == []
    assert [c for c in verify(statement, opening) if c.fault] == []
    assert accepted(name) == []
