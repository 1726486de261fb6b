"""A statement is recomputed from itself alone: what is understated, left out or changed doesn't hold."""

import copy
import json
from typing import Any

import pytest

from privbench.defenses.accounting import ClientLevel, Facts, RecordLevel
from privbench.defenses.accounting.command import dp
from privbench.defenses.accounting.discrete import Grid
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


TEN: dict[str, Any] = {
    "clients": 10,
    "participation": 1.0,
    "sampling": "fixed",
    "records": (40,) * 10,
    "batch": (10,) * 10,
    "steps": (4,) * 10,
}
PLANS = {
    "central": ClientLevel(delta=1e-3, clip=0.5, epsilon=8.0).bind(facts()),
    "attested": ClientLevel(delta=1e-3, clip=0.5, epsilon=8.0).bind(facts(operator_reads_updates=False)),
    "local": ClientLevel(delta=1e-3, clip=0.5, epsilon=8.0, noise="local").bind(facts()),
    "fixed": ClientLevel(delta=1e-3, clip=0.5, epsilon=8.0, adjacency="replace", accountant="rdp").bind(
        facts(sampling="fixed")
    ),
    "record": RecordLevel(delta=1e-5, clip=1.0, epsilon=8.0).bind(facts()),
    "local, read": ClientLevel(delta=1e-3, clip=0.5, epsilon=8.0, noise="local").bind(facts(sampling="fixed")),
    "local, hidden": ClientLevel(delta=1e-3, clip=0.5, epsilon=8.0, noise="local").bind(
        facts(sampling="fixed", operator_reads_updates=False)
    ),
    "clip only": ClientLevel(delta=1e-3, clip=0.5, noise_multiplier=0.0).bind(facts()),
    "clip only, discrete": ClientLevel(
        delta=1e-3, clip=0.5, noise_multiplier=0.0, noise="distributed", accountant="rdp"
    )
    .bind(facts(**TEN, operator_reads_updates=False))
    .on(Grid(2.0**-12, 1000)),
}
# By these accountants epsilon is above what RDP finds, and a bound all the same.
ABOVE_RDP = {
    "prv, hardly sampled": ClientLevel(delta=1e-5, clip=0.5, noise_multiplier=20.0, accountant="prv").bind(
        facts(participation=0.01)
    ),
    "prv, much noise": ClientLevel(
        delta=1e-5, clip=0.5, noise_multiplier=3000.0, accountant="prv", noise="distributed"
    ).bind(facts(participation=1.0, operator_reads_updates=False)),
    "prv, records": RecordLevel(delta=9e-6, clip=1.0, noise_multiplier=20.0, accountant="prv").bind(
        facts(records=(1000,) * 100, rounds=3)
    ),
    "pld, small delta": ClientLevel(delta=1e-14, clip=0.5, noise_multiplier=1.0).bind(
        facts(participation=0.01, rounds=1000)
    ),
}


def made(name: str, retried: bool = False) -> Documents:
    return written(PLANS[name], retried=retried)


def written(plan: Any, rounds: int = ROUNDS, retried: bool = False) -> Documents:
    ledger = [plan.charge(r, [0, 1]) for r in range(1, rounds + 1)]
    if retried:
        ledger.insert(2, ledger[1])
    sizes = [10, 8, 0, 12, 9] if plan.facts.sampling == "poisson" else [10] * ROUNDS
    return document(plan, ledger, sizes[:rounds], SUBJECT)


def faults(statement: dict[str, Any], opening: dict[str, Any] | None = None) -> list[str]:
    return [c.name for c in verify(statement, opening) if c.fault is not None]


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("retried", [False, True])
def test_what_a_run_states_holds(name, retried):
    given = made(name, retried)
    statement = json.loads(json.dumps(given.statement))
    assert faults(statement) == faults(statement, given.opening) == []
    claims = {c["adversary"]: c["epsilon"] for c in statement["claims"]}
    if "clip only" not in name and not name.startswith("local"):
        assert (claims["model_recipient"] > 8.0) == retried, "a second attempt is a second release"


@pytest.mark.parametrize("name", ABOVE_RDP)
def test_the_second_value_may_be_the_smaller_one(name):
    plan = ABOVE_RDP[name]
    ledger = [plan.charge(r, [0]) for r in range(1, plan.facts.rounds + 1)]
    statement = document(plan, ledger, [1] * plan.facts.rounds, SUBJECT).statement
    own = statement["claims"][0]
    assert own["epsilon"] > own["rdp_epsilon"] + 1e-3
    assert faults(statement) == []


def test_receipts_name_cohorts_so_that_their_readers_have_a_claim_of_their_own():
    claims = {c["adversary"]: c for c in made("attested").statement["claims"]}
    reader, operator, recipient = (claims[a] for a in ("receipt_reader", "server_operator", "model_recipient"))
    assert (reader["adjacency"], reader["sampling"]) == ("zero_out", "none")
    assert reader["epsilon"] == operator["epsilon"] > 2 * recipient["epsilon"]
    without = copy.deepcopy(made("attested").statement)
    without["claims"].remove(reader)
    assert faults(without) == ["statement: claims"]
    for name in ("central", "local, hidden", "record"):
        assert len(made(name).statement["claims"]) == 2, "nothing that cohorts' sizes take away from"


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


@pytest.mark.parametrize(("name", "other"), [("central", "attested"), ("local, read", "local, hidden")])
def test_the_operator_s_claim_is_not_changed_by_itself(name, other):
    """In place of what an operator who reads every update is promised, what one is promised who reads none."""
    honest, hiding = (json.loads(json.dumps(written(PLANS[n]).statement)) for n in (name, other))
    assert [s["mechanism"]["operator_reads"] for s in (honest, hiding)] == ["updates", "sums"]
    assert honest["claims"][0] == hiding["claims"][0]
    assert honest["claims"][1] != hiding["claims"][1]
    honest["claims"][1] = hiding["claims"][1]
    assert {"server_operator: history", "server_operator: why"} <= set(faults(honest))
    honest["mechanism"]["operator_reads"] = "sums"
    honest["claims"] += hiding["claims"][2:]
    assert faults(honest) == [], "another run's"


def test_whoever_correlates_noise_reads_updates():
    plan = ClientLevel(delta=1e-3, clip=0.5, noise_multiplier=2.0, bands=1)
    hiding = written(plan.bind(facts(operator_reads_updates=False))).statement
    assert faults(hiding) == ["statement: mechanism: operator_reads"]
    assert faults(written(plan.bind(facts())).statement) == []


def test_a_stated_0_is_of_what_costs_nothing():
    plan = ClientLevel(delta=1e-12, clip=0.5, noise_multiplier=1e6, noise="local")
    statement = written(plan.bind(facts(rounds=1)), 1).statement
    tiny = statement["claims"][0]
    assert tiny["epsilon"] == 0.0001
    for name, check in (
        ("epsilon", "epsilon"),
        ("rdp_epsilon", "cross-check"),
        ("epsilon_replace_one", "epsilon_replace_one"),
    ):
        lie = copy.deepcopy(statement)
        lie["claims"][0][name] = 0.0
        assert faults(lie) == [f"model_recipient: {check}"]
    assert faults(statement) == faults(written(plan.bind(facts(rounds=1)), 0).statement) == []


@pytest.mark.parametrize("schema", ["privbench.privacy-statement/1", "privbench.privacy-statement/2", 3, None])
def test_another_schema_is_refused_by_name(schema):
    statement = {**made("central").statement, "schema": schema}
    del statement["mechanism"]["operator_reads"]
    (check,) = verify(statement)
    assert check.name == "form"
    assert f"schema: {str(schema)!r}, and 'privbench.privacy-statement/4' is what" in str(check.fault)


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
    given = made("central")
    paths = [tmp_path / "statement.json", tmp_path / "opening.json"]
    for path, content in zip(paths, (given.statement, given.opening), strict=True):
        path.write_text(json.dumps(content))
    assert dp(["verify", str(paths[0]), "--opening", str(paths[1])]) == 0
    assert capsys.readouterr().out.endswith("the statement holds\n")
    paths[0].write_text(json.dumps({**given.statement, "model": "00"}))
    assert dp(["verify", str(paths[0]), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["holds"], told["checks"][0]["check"]) == (False, "form")
    for content in ("", "[]", '{"a": NaN}', "[" * 100_000):
        paths[0].write_text(content)
        assert dp(["verify", str(paths[0])]) == 2
        assert str(paths[0]) in capsys.readouterr().err
    assert dp(["verify", str(tmp_path / "none.json")]) == 2
