"""Disaggregation against closed forms: linear systems whose solution is known, and models that don't move."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from privbench.attacks.leakage.disaggregation import disaggregate
from privbench.attacks.leakage.participants import participations
from privbench.benchmarks.federation.server import ServerSGD
from privbench.benchmarks.federation.update import Layout, Update
from privbench.benchmarks.federation.view import Known, Mixture, Public, RoundView, View, collude

SIZE, RATE = 4, 0.25


def view_of(
    cohorts: list[tuple[int, ...]], updates: Tensor, weights: tuple[float, ...], sent: Tensor | None = None, **public
) -> View:
    """Releases of ``sum w u / sum w`` over each cohort, all from the model ``sent`` (zero unless given by round)."""
    layout = Layout(("w",), ((SIZE,),), 1)
    records = tuple(int(w) for w in weights)
    fields = {"kind": "update", "server": ServerSGD(), "mixture": Mixture(weights), "records": records, **public}
    known = Public(
        nn.Linear(2, 2), layout, lambda model, batch: batch[0].sum(), (1,), 2, torch.tensor(0.0), torch.tensor(1.0),
        learning_rate=RATE, local_steps=lambda records: 1, **fields,
    )  # fmt: skip
    rounds = []
    for number, cohort in enumerate(cohorts, start=1):
        start = torch.zeros(SIZE) if sent is None else sent[number - 1]
        mean = sum(weights[c] * updates[c] for c in cohort) / sum(weights[c] for c in cohort)
        rounds.append(RoundView(number, start, start + torch.as_tensor(mean), cohort))
    return View("server_operator", known, tuple(rounds))


@st.composite
def federations(draw):
    clients = draw(st.integers(2, 5))
    cohort = st.sets(st.integers(0, clients - 1), min_size=1, max_size=clients).map(lambda c: tuple(sorted(c)))
    cohorts = draw(st.lists(cohort, min_size=1, max_size=8))
    weights = tuple(float(w) for w in draw(st.lists(st.integers(1, 9), min_size=clients, max_size=clients)))
    return cohorts, weights, draw(st.integers(0, 2**31))


@given(federations())
@settings(max_examples=60, deadline=None)
def test_a_client_is_found_exactly_where_the_cohorts_identify_it_and_never_else(case):
    cohorts, weights, seed = case
    updates = torch.randn(len(weights), SIZE, generator=torch.Generator().manual_seed(seed))
    view = view_of(cohorts, updates, weights)
    # By another way: a client is identified if leaving its column out lowers the rank of the 0/1 matrix.
    matrix = np.array([[c in cohort for c in range(len(weights))] for cohort in cohorts], dtype=float)
    for client in range(len(weights)):
        without = np.delete(matrix, client, axis=1)
        identified = np.linalg.matrix_rank(without) < np.linalg.matrix_rank(matrix)
        found = disaggregate(view, client)
        assert (found is not None) == identified
        if found is not None:
            torch.testing.assert_close(found.gradient, -updates[client] / RATE, rtol=1e-3, atol=1e-3)
            assert (found.source, found.exact, found.counted) == ("disaggregated", False, True)
            assert found.records == weights[client]


def test_two_who_always_come_together_are_not_told_apart():
    updates = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(0))
    view = view_of([(0, 1), (0, 1, 2), (2,)], updates, (1.0, 1.0, 1.0))
    assert disaggregate(view, 0) is None
    assert disaggregate(view, 2) is not None
    assert disaggregate(view, 2, rounds=[1]) is None, "it took part in none of these"


def test_an_update_that_changes_with_the_model_is_found_at_a_model_between():
    """Quadratic losses: the gradient of client c at w is w - target_c, so that a mean of gradients is one of models."""
    targets = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(0))
    sent = 0.1 * torch.randn(3, SIZE, generator=torch.Generator().manual_seed(1))
    cohorts = [(0,), (0, 1), (1,)]
    view = view_of(cohorts, torch.zeros(3, SIZE), (1.0, 1.0, 1.0), sent)
    steps = zip(sent, cohorts, strict=True)
    moved = [-RATE * torch.stack([w - targets[c] for c in cohort]).mean(0) for w, cohort in steps]
    seen = zip(view.rounds, sent, moved, strict=True)
    found = disaggregate(replace(view, rounds=tuple(replace(r, released=w + m) for r, w, m in seen)), 0)
    assert found is not None
    # The pseudo-inverse of [[1, 0], [1/2, 1/2], [0, 1]] has the first row (5/6, 1/3, -1/6).
    model, drift = 5 / 6 * sent[0] + 1 / 6 * sent[1], (sent[1] - sent[2]) / 6
    torch.testing.assert_close(found.model, model, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.gradient, model - targets[0] + drift, rtol=1e-4, atol=1e-5)


def test_colluders_leave_fewer_unknowns():
    updates = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(0))
    view = view_of([(0, 1, 2), (0, 1)], updates, (1.0, 2.0, 3.0))
    assert disaggregate(view, 0) is None
    own = {r.round: {1: Update(updates[1], view.public.layout, "update", 2)} for r in view.rounds}
    found = disaggregate(collude(view, own, (1,)), 0)
    assert found is not None
    torch.testing.assert_close(found.gradient, -updates[0] / RATE, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("noised", "expected"), [("release", 3 * 5**0.5), ("update", 3 * 3**0.5)])
def test_noise_grows_with_the_combination(noised, expected):
    """u_0 = 2 r_1 - r_2: of noise on each release 3 sqrt(2^2 + 1^2), of each client's on its message 3 sqrt(2 + 1)."""
    updates = torch.randn(2, SIZE, generator=torch.Generator().manual_seed(0))
    known = {noised: Known(noise_std=3.0)}
    view = view_of([(0, 1), (1,)], updates, (1.0, 1.0), known=lambda source, client: known.get(source, Known()))
    found = disaggregate(view, 0)
    assert found is not None
    assert found.known.noise_std == pytest.approx(expected)


def test_momentum_is_undone_with_the_round_before():
    updates = torch.randn(2, SIZE, generator=torch.Generator().manual_seed(0))
    view = view_of([(0, 1), (1,)], updates, (1.0, 1.0), server=ServerSGD(0.5, 0.9))
    first = updates.mean(0)
    second = 0.9 * first + updates[1]
    rounds = tuple(replace(r, released=0.5 * m) for r, m in zip(view.rounds, (first, second), strict=True))
    found = disaggregate(replace(view, rounds=rounds), 0)
    assert found is not None
    torch.testing.assert_close(found.gradient, -updates[0] / RATE, rtol=1e-3, atol=1e-4)
    assert disaggregate(replace(view, rounds=rounds[1:]), 1) is None, "its momentum is that of a round not seen"


@pytest.mark.parametrize("blind", [{"mixture": None}, {"server": object()}])
def test_an_unknown_rule_or_server_gives_no_equations(blind):
    view = view_of([(0,)], torch.ones(1, SIZE), (1.0,), **blind)
    assert disaggregate(view, 0) is None


def test_who_sees_no_participants_has_no_equations():
    view = view_of([(0,)], torch.ones(1, SIZE), (1.0,))
    outside = replace(view, rounds=tuple(replace(r, participants=None) for r in view.rounds))
    assert disaggregate(outside, 0) is None


@pytest.mark.parametrize("seed", range(3))
def test_participations_are_found_from_sums_and_counts(seed):
    """The paper's setting, small: 8 clients in 24 rounds, each client's count known for every 6 of them."""
    rng = np.random.default_rng(seed)
    matrix = (rng.random((24, 8)) < 0.5).astype(float)
    sums = matrix @ rng.normal(size=(8, 30))
    blocks = [range(i, i + 6) for i in range(0, 24, 6)]
    for column in matrix.T:
        found = participations(sums, blocks, [int(column[list(b)].sum()) for b in blocks])
        assert found is not None
        # It is a column that fits: the client's own, or that of one with the same counts.
        assert any(np.array_equal(found, c) for c in matrix.T)
        assert [found[list(b)].sum() for b in blocks] == [column[list(b)].sum() for b in blocks]


def test_participations_that_fit_nobody_are_none():
    matrix = np.array([[1, 0], [0, 1], [1, 1]], dtype=float)
    sums = matrix @ np.random.default_rng(0).normal(size=(2, 5))
    assert participations(sums, [range(3)], [1]) is None
    with pytest.raises(ValueError, match="1 blocks, but 2 counts"):
        participations(sums, [range(3)], [1, 2])
