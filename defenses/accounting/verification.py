"""``privbench dp verify``: a privacy statement, checked and recomputed from itself alone."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from jsonschema import Draft202012Validator

from privbench.defenses.accounting import cohorts
from privbench.defenses.accounting.accountant import Terms, round_up
from privbench.defenses.accounting.consistency import Fault, of_claim, of_statement, shown
from privbench.defenses.accounting.history import History, Name, Uncovered, sampled, summed
from privbench.defenses.accounting.schema import STATEMENT
from privbench.defenses.accounting.statement import SCHEMA, commitment
from privbench.defenses.accounting.wording import WHERE

LARGEST = 16 * 2**20
"""Bytes of a statement, from which it is refused unread."""

_SLACK, _SHARE = 1.01e-4, 0.01
"""Epsilons are rounded up to 4 digits: another version of the accountant may fall on the other side.

Where that would be much of the value, a share of it is allowed: a stated 0 is of what costs nothing.
"""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Args:
        name: of the check, with the adversary where it is about one claim.
        fault: what is wrong; ``None`` if it holds.
        found: what was recomputed.
    """

    name: str
    fault: str | None
    found: str = ""


class Unreadable(ValueError):
    """No privacy statement."""


def load(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        Unreadable: it can't be read, is no JSON object, or is too large.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise Unreadable(f"{path}: more than {LARGEST} bytes")
        found = json.loads(path.read_bytes(), parse_constant=_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise Unreadable(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(found, dict):
        raise Unreadable(f"{path}: no JSON object")
    return found


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def verify(statement: Mapping[str, Any], opening: Mapping[str, Any] | None = None) -> list[Check]:
    """All checks of a statement; where its form is wrong, that alone.

    Args:
        opening: of its digests, if its owner gives it away.
    """
    if (schema := statement.get("schema")) != SCHEMA:
        return [Check("form", f"schema: {str(schema)[:100]!r}, and {SCHEMA!r} is what is read here")]
    errors = sorted(Draft202012Validator(STATEMENT).iter_errors(statement), key=lambda e: list(map(str, e.path)))
    if errors:
        at = "/".join(map(str, errors[0].absolute_path)) or "the statement"
        return [Check("form", f"{at}: {errors[0].message[:200]}")]
    checks = [Check("form", None, statement["schema"])]
    checks += _consistent("statement", of_statement(statement), "mechanism, sampling and ledger are of one run")
    for claim in statement["claims"]:
        checks += _claim(claim, statement)
    checks.append(_holds("ledger", _ledger(statement), f"{statement['ledger']['charges']} charges"))
    if opening is not None:
        checks += _opened(statement, opening)
    return checks


def _consistent(name: str, faults: Iterable[Fault], found: str) -> list[Check]:
    wrong = [Check(f"{name}: {field}", why) for field, why in faults]
    return wrong or [Check(f"{name}: consistency", None, found)]


def _holds(name: str, fault: str | None, found: str = "") -> Check:
    return Check(name, fault, "" if fault else found)


def _claim(claim: Mapping[str, Any], statement: Mapping[str, Any]) -> Iterator[Check]:
    who = claim["adversary"]
    history: History = summed(((q, s), int(n)) for q, s, n in claim["history"])
    faults = list(of_claim(claim, statement))
    yield from _consistent(who, faults, shown(history))
    yield _holds(f"{who}: delta", _delta(claim, statement), f"{claim['delta']:g}")
    # What isn't the run's history needs no epsilon.
    if not any(name == "history" for name, _ in faults):
        yield _epsilon(claim, history)
        yield _second(claim, history)
        if (check := _replaced(claim, history, statement)) is not None:
            yield check
    if not claim["simulated"] and (claim["noise_source"] == "seeded" or sampled(history)):
        yield Check(
            f"{who}: simulated", "noise or sampling is drawn from a seed, and the claim is not said to be simulated"
        )


def _terms(claim: Mapping[str, Any], name: Name) -> Terms:
    # What isn't sampled has one accounting, however the rest of the run is drawn.
    return Terms(name, claim["adjacency"], "fixed" if claim["sampling"] == "fixed" else "poisson")


def _own(claim: Mapping[str, Any]) -> Name:
    """The accountant that a claim names."""
    return "rdp" if "RDP" in claim["accountant"] else "prv" if "PRV" in claim["accountant"] else "pld"


def _epsilon(claim: Mapping[str, Any], history: History) -> Check:
    """The stated value by the accountant that is named."""
    name, own, delta = f"{claim['adversary']}: epsilon", _own(claim), claim["delta"]
    try:
        terms = _terms(claim, own)
        found, described = terms.epsilon(history, delta), terms.describe(history, delta)
    except Uncovered as error:
        return Check(name, f"{claim['accountant']} proves nothing here: {error}")
    if described.partition(",")[0] != claim["accountant"].partition(",")[0]:
        return Check(name, f"{claim['accountant']!r} is named, the history's is {described!r}")
    return _holds(name, _below(claim["epsilon"], found), f"{_value(found)} by {own}, {_value(claim['epsilon'])} stated")


def _replaced(claim: Mapping[str, Any], history: History, statement: Mapping[str, Any]) -> Check | None:
    """Where clients add the noise, the epsilon of any two updates beside that of one and zero."""
    by_clients = statement["mechanism"]["added"] in (WHERE["local"], WHERE["distributed"])
    name, given = f"{claim['adversary']}: epsilon_replace_one", "epsilon_replace_one" in claim
    if not by_clients:
        return Check(name, "is of guarantees whose noise clients add to whole updates") if given else None
    if not given:
        return Check(name, "is missing")
    found = Terms(_own(claim), "replace").epsilon(history, claim["delta"])
    return _holds(name, _below(claim["epsilon_replace_one"], found), _value(found))


def _below(stated: float | None, found: float) -> str | None:
    if stated is None or (math.isfinite(found) and stated >= found - min(_SLACK, _SHARE * found)):
        return None
    return f"{stated} is stated, the history gives {_value(found)}"


def _second(claim: Mapping[str, Any], history: History) -> Check:
    """Renyi's value beside it, from the same history: an upper bound too, and sometimes the smaller one."""
    name = f"{claim['adversary']}: cross-check"
    found, stated = _terms(claim, "rdp").renyi(history, claim["delta"]), claim["rdp_epsilon"]
    if found is None:
        return _holds(
            name, None if stated is None else f"rdp_epsilon {stated} is stated, and has no proof", "none: no proof"
        )
    if stated is None and math.isfinite(found):
        return Check(name, f"rdp_epsilon is missing, the history gives {_value(found)}")
    return _holds(name, _below(stated, found), f"{_value(found)} by rdp")


def _delta(claim: Mapping[str, Any], statement: Mapping[str, Any]) -> str | None:
    population = statement["sampling"]["population"]
    return None if claim["delta"] < 1 / population else f"{claim['delta']:g} is not below 1/{population}"


def _ledger(statement: Mapping[str, Any]) -> str | None:
    ledger = statement["ledger"]
    entries = ledger["entries"]
    if sum(e["charges"] for e in entries) != ledger["charges"]:
        return f"{ledger['charges']} charges are stated, the entries hold {sum(e['charges'] for e in entries)}"
    at = 0
    for entry in entries:
        # A round that was tried again may begin a new entry.
        if entry["first"] not in (at, at + 1) or entry["last"] < entry["first"]:
            return f"round {at + 1} is missing"
        if entry["charges"] < entry["last"] - entry["first"] + (entry["first"] != at):
            return f"rounds {entry['first']} to {entry['last']} were charged {entry['charges']} times"
        at = entry["last"]
    return None if at == ledger["rounds"] else f"{ledger['rounds']} rounds are stated, the entries end at {at}"


def _opened(statement: Mapping[str, Any], opening: Mapping[str, Any]) -> Iterator[Check]:
    places: dict[str, tuple[str, str, Callable[[list[int]], str | None]]] = {
        "records": ("sampling", "population_sha256", lambda v: _records(statement, v)),
        "cohorts": ("ledger", "cohorts_sha256", lambda v: _cohorts(statement, v, opening.get("records"))),
    }
    salt = opening.get("salt")
    same = opening.get("nonce") == statement["nonce"]
    yield _holds("opening", None if same and isinstance(salt, str) else "it is of another statement", "nonce")
    for name, (part, digest, wrong) in places.items():
        value = opening.get(name)
        if not _counts(value):
            yield Check(f"opening: {name}", "a list of whole numbers from 0 is missing")
            continue
        fault = None if commitment(str(salt), value) == statement[part][digest] else f"its digest isn't {digest}"
        yield _holds(f"opening: {name}", fault or wrong(value), digest)


def _records(statement: Mapping[str, Any], records: list[int]) -> str | None:
    population, stated = sum(records), statement["sampling"]["population"]
    if statement["claims"][0]["unit"] == "client":
        population = len(records)
    if population != stated:
        return f"a population of {population}, {stated} is stated"
    local = statement["mechanism"]["local"]
    if local is not None and not any(_whole(local["sampling_rate"] * n) for n in records):
        return f"no client's batch is a share of {local['sampling_rate']:g} of what it has"
    return None


def _cohorts(statement: Mapping[str, Any], sizes: list[int], records: Any) -> str | None:
    if len(sizes) != (rounds := statement["ledger"]["rounds"]):
        return f"{len(sizes)} cohorts, {rounds} rounds"
    clients = statement["sampling"]["population"]
    if statement["claims"][0]["unit"] != "client":
        # Who has no record doesn't train, and would add to how often all may take part.
        clients = sum(n > 0 for n in records) if _counts(records) else None
    return None if clients is None else cohorts.opened(statement, sizes, clients)


def _counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)


def _whole(batch: float) -> bool:
    return batch >= 0.5 and abs(batch - round(batch)) < 1e-6


def _value(epsilon: float | None) -> str:
    return f"{round_up(epsilon):g}" if epsilon is not None and math.isfinite(epsilon) else "infinite"
