"""Noise correlated over rounds: sensitivity, error, what is really added, what is stated, and what is refused."""

import copy
import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation import processes as engines
from privbench.defenses import Defense
from privbench.defenses.accounting import ClientLevel, Facts
from privbench.defenses.accounting.factorisation import banded
from privbench.defenses.accounting.statement import Subject, document
from privbench.defenses.accounting.verification import verify
from privbench.defenses.aggregation import AdaptiveClippedMean, ClippedMean
from privbench.defenses.channel import Attested
from privbench.defenses.release import BandedGaussian, CentralGaussian

LEVEL = ClientLevel(delta=1e-3, clip=1.0, noise_multiplier=2.0, bands=4)


def ftrl(level: ClientLevel = LEVEL, **stations: Any) -> Defense:
    return Defense(**{"aggregation": ClippedMean(), "release": BandedGaussian(), "privacy": level, **stations})


def facts(**given: Any) -> Facts:
    return replace(Facts(20, 12, 0.2, "fixed", (50,) * 20, (5,) * 20, (10,) * 20, separation=4), **given)


def dense(bands: int, rounds: int) -> np.ndarray:
    c = banded(bands, rounds).coefficients
    return sum(np.diag([x] * (rounds - j), -j) for j, x in enumerate(c))  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize(("bands", "separation"), [(1, 1), (2, 2), (3, 3), (3, 4), (5, 5)])
def test_no_pattern_of_participations_moves_it_further_than_is_counted(bands, separation):
    rounds, matrix = 9, dense(bands, 9)
    worst = 0.0
    for size in range(1, rounds + 1):
        for at in itertools.combinations(range(rounds), size):
            if all(b - a >= separation for a, b in itertools.pairwise(at)):
                # Updates of length 1 in any direction: equal ones add up most, since the matrix has no negative entry.
                worst = max(worst, float(np.linalg.norm(matrix[:, list(at)].sum(1))))
    assert (matrix >= 0).all()
    counted = facts(rounds=rounds, separation=separation).counted(rounds)
    assert worst <= math.sqrt(counted) + 1e-9
    assert worst > 0.9 * math.sqrt(counted), "and it isn't counted with much to spare"


def test_error_is_what_the_matrix_says_and_falls_with_bands():
    prefix = np.tril(np.ones((12, 12)))
    errors = [banded(b, 12).error(12) for b in (1, 2, 4, 12)]
    for b, error in zip((1, 2, 4, 12), errors, strict=True):
        rows = np.linalg.norm(prefix @ np.linalg.inv(dense(b, 12)), axis=1)
        assert error == pytest.approx(math.sqrt((rows**2).mean()))
    assert errors[0] == pytest.approx(math.sqrt(13 / 2))
    assert errors == sorted(errors, reverse=True)


def test_the_square_root_without_bands_is_hardly_worse_than_the_optimum():
    c = np.array([math.comb(2 * j, j) / 4**j for j in range(32)])
    rows = np.cumsum(np.linalg.inv(sum(np.diag([x] * (32 - j), -j) for j, x in enumerate(c)))[:, 0])
    root = math.sqrt((rows**2 * np.arange(32, 0, -1)).sum() / 32) * np.linalg.norm(c)
    assert 0.97 * root < banded(32, 32).error(32) < root


def test_what_is_added_has_the_matrixs_covariance(federate):
    plan = LEVEL.bind(facts())
    matrix, last, added = plan.matrix, [], []
    assert matrix is not None
    generator = torch.Generator().manual_seed(0)
    for number in range(1, 13):
        added.append(matrix.next(torch.randn(200_000, generator=generator), last))
        last = [added[-1], *last][:3]
        assert float(added[-1].std()) == pytest.approx(matrix.spread(number), rel=0.01)
    inverse = np.linalg.inv(dense(4, 12))
    assert np.allclose(np.cov(torch.stack(added).numpy()), inverse @ inverse.T, atol=0.03)


def test_a_runs_noise_is_correlated_and_a_resumed_one_goes_on_with_it(federate):
    still = {"clients": 8, "rounds": 4, "participation": 0.25, "min_separation": 4, "local": {"learning_rate": 1e-12}}
    level = replace(LEVEL, delta=0.01)
    done = federate(defense=ftrl(level), **still)
    models = [r.released.model for r in done.rounds]
    federation = done.federation
    side = federation.client_side()
    rounds = federation.run(federation.start(), side, engines.Serial(side))
    half = copy.deepcopy([next(rounds), next(rounds)][-1].state)
    *_, end = federation.run(half, side, engines.Serial(side))
    assert torch.equal(end.released.model, models[-1])
    noises = [b - a for a, b in itertools.pairwise([done.federation.layout.read(done.federation.model), *models])]
    plan = done.federation.plan
    for number, noise in enumerate(noises, start=1):
        assert float(noise.std()) == pytest.approx(plan.noise_std(2, number), rel=0.05)
    kept = done.rounds[-1].state.release["noise"]
    assert len(kept) == 3
    assert torch.allclose(kept[0], noises[-1], atol=1e-5)


def test_clients_keep_their_distance(federate):
    done = federate(defense=ftrl(replace(LEVEL, delta=0.01)), clients=8, rounds=9, participation=0.25, min_separation=4)
    assert done.federation.sampling == "fixed"
    assert all(len(r.invited) == 2 for r in done.rounds)
    for client in range(8):
        at = [r.round for r in done.rounds if client in r.invited]
        assert all(b - a >= 4 for a, b in itertools.pairwise(at))


def test_epsilon_is_that_of_the_participations_and_the_statement_is_verified():
    plan = LEVEL.bind(facts())
    ledger = [plan.charge(r, range(4)) for r in range(1, 13)]
    recipient, operator = plan.statements(ledger)
    alone = ClientLevel(delta=1e-3, clip=1.0, noise_multiplier=2.0).bind(
        facts(rounds=3, participation=1.0, separation=1)
    )
    expected = alone.statements([alone.charge(r, range(20)) for r in range(1, 4)])[0]
    assert recipient["epsilon"] == pytest.approx(expected["epsilon"], abs=1e-6)
    assert operator["epsilon"] is None, "it reads every update"
    written = document(plan, ledger, [4] * 12, Subject("run", {}, "0" * 64))
    assert "correlated over 4 rounds" in written.statement["mechanism"]["noise"]
    assert all(c.fault is None for c in verify(written.statement, written.opening))
    lie = {**written.statement, "sampling": {**written.statement["sampling"], "least_separation": 6}}
    assert any(c.fault for c in verify(lie)), "a distance that the history doesn't have"


def test_noise_is_calibrated_to_the_participations():
    some = [
        replace(LEVEL, noise_multiplier=None, epsilon=8.0, bands=1).bind(facts(separation=s)).noise_multiplier
        for s in (1, 4)
    ]
    assert some[0] / some[1] == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("defense.privacy.bands", lambda f: f(defense=ftrl(), clients=20, participation=0.2, min_separation=3)),
        ("federation.min_separation", lambda f: f(defense=ftrl(), clients=20, participation=0.5, min_separation=4)),
        ("federation.min_separation", lambda f: f(clients=20, min_separation=0)),
        ("privacy.bands", lambda f: ftrl(replace(LEVEL, bands=None))),
        ("release", lambda f: ftrl(release=CentralGaussian())),
        ("channel", lambda f: ftrl(channel=Attested())),
        ("bands", lambda f: replace(LEVEL, bands=0)),
        ("bands", lambda f: replace(LEVEL, noise="local")),
        ("bands", lambda f: ftrl(replace(LEVEL, adaptive=True), aggregation=AdaptiveClippedMean())),
        (
            "federation.min_separation",
            lambda f: f(
                defense=ftrl(replace(LEVEL, bands=None), release=CentralGaussian()),
                clients=20,
                participation=0.2,
                min_separation=4,
            ),
        ),
    ],
    ids=["bands", "no cohort", "zero", "no bands", "independent", "attested", "none", "local", "adaptive", "amplified"],
)
def test_what_does_not_fit_is_named(federate, field, make):
    with pytest.raises(ConfigError) as caught:
        make(federate)
    assert caught.value.field in (field, field.rpartition(".")[2])
