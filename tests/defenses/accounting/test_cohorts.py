"""Statements of cohorts that no run has had don't hold; those of runs do, however they are drawn and limited."""

import random
from typing import Any, Literal

import pytest

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.sampling import cohort
from privbench.benchmarks.federation.settings import FederationSettings
from privbench.benchmarks.shares import cohort_size
from privbench.defenses.accounting import ClientLevel, Facts, RecordLevel
from privbench.defenses.accounting.cohorts import limits, opened, shares
from privbench.defenses.accounting.statement import Documents, commitment, document
from privbench.defenses.accounting.verification import verify
from privbench.defenses.accounting.wording import assumes

from .test_verification import SUBJECT, facts, faults

NOISY: dict[str, Any] = {"delta": 1e-3, "clip": 0.5, "noise_multiplier": 2.0}
TWENTY = facts(rounds=20, sampling="fixed")


def made(plan: Any, sizes: list[int]) -> Documents:
    """A run's statement whose clients take part in turn, and an opening by which cohorts had these sizes."""
    rounds, clients = range(plan.facts.rounds), plan.facts.clients
    ledger = [plan.charge(r + 1, [(10 * r + i) % clients for i in range(10)]) for r in rounds]
    return document(plan, ledger, sizes, SUBJECT)


def local(given: Facts, **more: Any) -> Any:
    return ClientLevel(**{**NOISY, **more}, noise="local").bind(given)


def test_sums_hold_the_noise_of_a_cohort_at_most():
    honest = made(local(TWENTY), [10] * 20)
    assert faults(honest.statement, honest.opening) == []
    # All clients in every cohort is another run, of whose claims and ledger the lie is made.
    lie = made(local(facts(rounds=20, sampling="fixed", participation=1.0)), [100] * 20).statement
    assert faults(lie) == []
    lie["mechanism"]["normaliser"] = 10.0
    found = [c for c in verify(lie) if c.fault]
    assert [c.name for c in found] == ["model_recipient: assumes"]
    assert "100 clients, and cohorts have 10 for sure" in str(found[0].fault)


@pytest.mark.parametrize("changed", [{"scheme": "poisson"}, {"most_participations": 20}])
def test_where_cohorts_vary_a_client_counts_on_its_own_noise(changed):
    lie = made(local(TWENTY), [10] * 20).statement
    lie["sampling"].update(changed)
    assert faults(lie) == ["model_recipient: assumes"]


def test_shares_of_single_rounds_are_counted():
    written = made(local(TWENTY), [10] * 20).statement
    (entry,) = written["ledger"]["entries"]
    entry.update(last=10, charges=10)
    more = {"noise_multiplier": 2000.0, "message_multiplier": 2.0}
    written["ledger"]["entries"].append({"first": 11, "last": 20, "charges": 10, "charge": more})
    assert "model_recipient: assumes" in faults(written)


@pytest.mark.parametrize(
    ("limit", "field"),
    [({"cap": 1}, "most_participations"), ({"separation": 20}, "least_separation")],
    ids=["cap", "separation"],
)
@pytest.mark.parametrize("sampling", ["fixed", "poisson"])
def test_a_limit_that_settings_refuse_is_a_fault(limit, field, sampling):
    plan = local(facts(rounds=20, sampling=sampling, **limit))
    assert faults(made(plan, [10] * 20).statement) == [f"statement: sampling: {field}"]


OPENED = {
    "less noise than is counted on": (
        ClientLevel(**NOISY, noise="distributed").bind(facts(rounds=20, sampling="fixed", participation=1.0)),
        [100] * 20,
        [3] * 20,
    ),
    "one cohort with less noise": (local(TWENTY), [10] * 20, [*[10] * 19, 9]),
    "more often than the cap": (local(facts(rounds=20, cap=2)), [10] * 20, [11, *[10] * 19]),
    "more often than the cap, by record": (
        RecordLevel(**{**NOISY, "delta": 1e-5}).bind(facts(rounds=20, cap=2)),
        [10] * 20,
        [11, *[10] * 19],
    ),
    "too near": (local(facts(rounds=20, separation=4)), [25] * 20, [25, 25, 26, *[25] * 17]),
    "more than all": (ClientLevel(**NOISY).bind(facts(rounds=20)), [100, *[0] * 19], [101, *[0] * 19]),
}


@pytest.mark.parametrize("name", OPENED)
def test_cohorts_that_no_run_has_had_are_refused_by_their_opening(name):
    plan, possible, impossible = OPENED[name]
    for sizes, wrong in ((possible, []), (impossible, ["opening: cohorts"])):
        written = made(plan, sizes)
        assert faults(written.statement) == []
        assert faults(written.statement, written.opening) == wrong


def test_clients_without_records_do_not_add_to_a_cap():
    written = made(RecordLevel(**{**NOISY, "delta": 1e-5}).bind(facts(rounds=20, cap=2)), [11, *[10] * 19])
    padded = {**written.opening, "records": [*written.opening["records"], *[0] * 100]}
    written.statement["sampling"]["population_sha256"] = commitment(padded["salt"], padded["records"])
    assert faults(written.statement, padded) == ["opening: cohorts"]
    padded["records"] = [*written.opening["records"], 1, -1]
    written.statement["sampling"]["population_sha256"] = commitment(padded["salt"], padded["records"])
    assert "opening: records" in faults(written.statement, padded)


def drawn(given: Facts, seed: int) -> list[int]:
    """The sizes of cohorts as a federation draws them."""
    invited: dict[int, list[int]] = {}
    sizes = []
    for number in range(1, given.rounds + 1):
        spent = given.spent(invited, number)
        now = cohort(given.clients, given.participation, given.sampling, stream(seed, "cohort", number), spent)
        for client in now:
            invited.setdefault(client, []).append(number)
        sizes.append(len(now))
    return sizes


def random_facts(seed: int) -> Facts | None:
    """A federation's, limited or not; ``None`` where its settings refuse it."""
    draw = random.Random(seed)
    clients, rounds = draw.randint(1, 12), draw.randint(1, 30)
    share = draw.choice([draw.random() / 3 or 0.1, (draw.randint(0, clients - 1) + 0.5) / clients, 1.0])
    cap, apart = draw.choice([None, draw.randint(1, rounds)]), draw.choice([1, draw.randint(1, 6)])
    kind: Literal["fixed", "poisson"] = "fixed" if draw.random() < 0.5 else "poisson"
    try:
        FederationSettings(rounds=rounds, participation=share, max_participations=cap, min_separation=apart)
    except ConfigError:
        return None
    if cohort_size(share, clients) * apart > clients:
        return None
    each = (4,) * clients
    return Facts(clients, rounds, share, kind, each, each, each, cap=cap, separation=apart)


def outline(given: Facts) -> dict[str, Any]:
    """What of a statement is about cohorts."""
    plan = ClientLevel(delta=1e-3, clip=1.0, noise_multiplier=1.0, noise="local").bind(given)
    claim = {"assumes": assumes(plan.shares)} if plan.shares > 1 else {}
    return {
        "claims": [claim],
        "mechanism": {"normaliser": plan.expected},
        "sampling": {
            "scheme": given.sampling,
            "population": given.clients,
            "most_participations": given.cap,
            "least_separation": given.separation,
        },
        "ledger": {"rounds": given.rounds},
        "shares": plan.shares,
    }


def test_what_runs_draw_holds():
    limited = 0
    for seed in range(400):
        if (given := random_facts(seed)) is not None:
            run = outline(given)
            assert list(limits(run)) == [], given
            assert opened(run, drawn(given, seed), given.clients) is None, given
            assert run["shares"] <= shares(run), given
            limited += given.limited is not None
    assert limited > 50


def test_the_least_cap_of_a_rounded_share_holds():
    """2 of 10 clients, asked for as 0.15: settings let a client take part twice in 13 rounds; the last are empty."""
    given = facts(clients=10, rounds=13, participation=0.15, sampling="fixed", cap=2)
    FederationSettings(rounds=13, participation=0.15, max_participations=2)
    sizes = drawn(given, 0)
    assert sizes == [*[2] * 10, 0, 0, 0]
    assert list(limits(outline(given))) == []
    assert opened(outline(given), sizes, 10) is None
