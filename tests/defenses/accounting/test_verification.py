"""A statement is recomputed from itself alone: what is understated, left out or changed doesn't hold."""

import copy
import json
from typing import Any

import pytest

from privbench.defenses.accounting import ClientLevel, Facts, RecordLevel
from privbench.defenses.accounting.command import dp
from privbench.defenses.accounting.statement import Documents, Subject, document
from privbench.defenses.accounting.verification import verify

SUBJECT = Subject("a run", {"commit": "c0ffee"}, "ab" * 32)
ROUNDS = 5


def facts(**changes: Any) -> Facts:
    fields = {
        "clients": 100,
        "rounds": ROUNDS,
        "participation": 0.1,
        "sampling": "poisson",
        "records": (40,) * 100,
        "batch": (10,) * 100,
        "steps": (4,) * 100,
    }
    return Facts(**{**fields, **changes})


PLANS = {
    "central": ClientLevel(delta=1e-3, clip=0.5, epsilon=8.0).bind(facts()),
    "attested": ClientLevel(delta=1e-3, clip=0.5, epsilon=8.0).bind(facts(operator_reads_updates=False)),
    "local": ClientLevel(delta=1e-3, clip=0.5, epsilon=8.0, noise="local").bind(facts()),
    "fixed": ClientLevel(delta=1e-3, clip=0.5, epsilon=8.0, adjacency="replace", accountant="rdp").bind(
        facts(sampling="fixed")
    ),
    "record": RecordLevel(delta=1e-5, clip=1.0, epsilon=8.0).bind(facts()),
    "clip only": ClientLevel(delta=1e-3, clip=0.5, noise_multiplier=0.0).bind(facts()),
}


def made(name: str, retried: bool = False) -> Documents:
    plan = PLANS[name]
    ledger = [plan.charge(r, [0, 1]) for r in range(1, ROUNDS + 1)]
    if retried:
        ledger.insert(2, ledger[1])
    return document(plan, ledger, [10, 8, 0, 12, 9], SUBJECT)


def faults(statement: dict[str, Any], opening: dict[str, Any] | None = None) -> list[str]:
    return [c.name for c in verify(statement, opening) if c.fault is not None]


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("retried", [False, True])
def test_what_a_run_states_holds(name, retried):
    written = made(name, retried)
    statement = json.loads(json.dumps(written.statement))
    assert faults(statement) == faults(statement, written.opening) == []
    claims = {c["adversary"]: c["epsilon"] for c in statement["claims"]}
    if name not in ("clip only", "local"):
        assert (claims["model_recipient"] > 8.0) == retried, "a second attempt is a second release"


def claim(field: str, value: Any):
    return lambda s: s["claims"][0].update({field: value})


LIES = {
    "an epsilon too low": (claim("epsilon", 1.0), "model_recipient: epsilon"),
    "a second value too low": (claim("rdp_epsilon", 0.5), "model_recipient: cross-check"),
    "no second value": (claim("rdp_epsilon", None), "model_recipient: cross-check"),
    "a delta too large": (claim("delta", 0.01), "model_recipient: delta"),
    "fewer rounds": (lambda s: s["claims"][0]["history"][0].__setitem__(2, 1), "model_recipient: history"),
    "more noise": (lambda s: s["claims"][0]["history"][0].__setitem__(1, 9.0), "model_recipient: history"),
    "a lower rate": (lambda s: s["claims"][0]["history"][0].__setitem__(0, 0.01), "model_recipient: history"),
    "another clip": (claim("clip", 0.1), "model_recipient: clip"),
    "seeded noise passed off as real": (claim("simulated", False), "model_recipient: simulated"),
    "a round left out of the ledger": (lambda s: s["ledger"]["entries"][0].update(first=2), "ledger"),
    "a charge left out of the ledger": (lambda s: s["ledger"].update(charges=4), "ledger"),
    "an epsilon that is no number": (claim("epsilon", "8"), "form"),
    "an unknown field": (lambda s: s.update(signed=True), "form"),
    "no claim": (lambda s: s.update(claims=[]), "form"),
    "an accountant without a proof": (claim("sampling", "fixed"), "model_recipient: epsilon"),
    "amplified against the operator": (claim("adversary", "server_operator"), "server_operator: history"),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_is_changed_does_not_hold(lie):
    change, check = LIES[lie]
    statement = copy.deepcopy(made("attested").statement)
    change(statement)
    assert check in faults(statement)


NUMBERS: list[tuple[Any, ...]] = [
    ("claims", 0, "history", 0, 0),
    ("claims", 0, "history", 0, 1),
    ("claims", 0, "history", 0, 2),
    ("claims", 0, "epsilon"),
    ("claims", 0, "delta"),
    ("claims", 0, "clip"),
    ("claims", 0, "rounds"),
    ("mechanism", "normaliser"),
    ("sampling", "population"),
    ("sampling", "most_participations"),
    ("ledger", "charges"),
    ("ledger", "entries", 0, "last"),
    ("ledger", "entries", 0, "charge", "noise_multiplier"),
]


@pytest.mark.parametrize("at", NUMBERS, ids=lambda at: "/".join(map(str, at)))
def test_numbers_out_of_range_are_faults_and_no_crash(at, tmp_path, capsys):
    file = tmp_path / "statement.json"
    for value in ("1e400", "-1e400", "1e300", "1e-300", "5e-324", "-1", str(10**400), str(10**12)):
        statement = copy.deepcopy(made("attested").statement)
        inside: Any = statement
        for key in at[:-1]:
            inside = inside[key]
        inside[at[-1]] = "here"
        file.write_text(json.dumps(statement).replace('"here"', value))
        larger = at[-1] == "epsilon" and value == str(10**12)
        assert dp(["verify", str(file)]) == 1 or larger, f"{value} is no number of this run"
        capsys.readouterr()


def test_an_opening_is_of_its_statement_alone():
    one, other = made("central"), made("central")
    assert one.statement["sampling"]["population_sha256"] != other.statement["sampling"]["population_sha256"]
    assert faults(one.statement, other.opening) == ["opening", "opening: records", "opening: cohorts"]
    shorter = {**one.opening, "cohorts": [10, 8]}
    assert faults(one.statement, shorter) == ["opening: cohorts"]
    assert faults(one.statement, {**one.opening, "records": "many"}) == ["opening: records"]


def test_the_command(tmp_path, capsys):
    written = made("central")
    paths = [tmp_path / "statement.json", tmp_path / "opening.json"]
    for path, content in zip(paths, (written.statement, written.opening), strict=True):
        path.write_text(json.dumps(content))
    assert dp(["verify", str(paths[0]), "--opening", str(paths[1])]) == 0
    assert capsys.readouterr().out.endswith("the statement holds\n")
    paths[0].write_text(json.dumps({**written.statement, "model": "00"}))
    assert dp(["verify", str(paths[0]), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["holds"], told["checks"][0]["check"]) == (False, "form")
    for content in ("", "[]", '{"a": NaN}', "[" * 100_000):
        paths[0].write_text(content)
        assert dp(["verify", str(paths[0])]) == 2
        assert str(paths[0]) in capsys.readouterr().err
    assert dp(["verify", str(tmp_path / "none.json")]) == 2
