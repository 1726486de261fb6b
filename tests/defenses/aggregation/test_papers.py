"""Rules against a plain reading of their papers, where sizes are far apart or clients few."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.server import RoundContext
from privbench.benchmarks.federation.update import Layout, Update
from privbench.defenses.accounting import Facts
from privbench.defenses.aggregation import (
    FLAME,
    Bulyan,
    CenteredClipping,
    CoordinateMedian,
    DnC,
    FLTrust,
    FoolsGold,
    GeometricMedian,
    Mean,
    MultiKrum,
    NearestNeighbourMixing,
    TrimmedMean,
)
from privbench.defenses.aggregation.similarity import cosines, fltrust, foolsgold_weights

EVERY = [
    Mean(),
    CoordinateMedian(),
    TrimmedMean(f=0),
    MultiKrum(f=0, m=1),
    MultiKrum(f=0),
    Bulyan(f=0),
    GeometricMedian(),
    GeometricMedian(mixing=NearestNeighbourMixing(f=0)),
    CenteredClipping(),
    DnC(f=0),
    FLTrust(),
    FoolsGold(),
    FLAME(),
]


def round_of(size: int, seed: int = 0, buffers: int = 0) -> RoundContext:
    shapes = ((size - buffers,), (buffers,))
    return RoundContext(seed, 1, (), 1.0, "equal", Layout(("w", "b"), shapes, 1), "update", 0.1, None, frozenset())


def combine(rule: Any, x: Tensor, **more: int) -> Update:
    context = round_of(x.shape[1], **more)
    return rule.combine((Update(row, context.layout, "update", 1, client=c) for c, row in enumerate(x)), {}, context)


def facts(clients: int, **changes: Any) -> Facts:
    each = (1,) * clients
    return Facts(
        **{"clients": clients, "rounds": 1, "participation": 1.0, "sampling": "fixed", **changes},
        **dict.fromkeys(("records", "batch", "steps"), each),
    )


@pytest.mark.parametrize("short", [1.0, 1e-3, 1e-4, 1e-12])
@pytest.mark.parametrize("seed", range(5))
def test_fltrust_of_an_update_far_shorter_than_the_roots(short: float, seed: int):
    """It is made as long as the root's: an error in its length would be made as much longer."""
    drawn = torch.Generator().manual_seed(seed)
    root = torch.nn.functional.normalize(torch.randn(1000, generator=drawn), dim=0)
    x = root + 0.02 * torch.randn(6, 1000, generator=drawn)
    x[-1] = short * torch.nn.functional.normalize(0.2 * root + x[-1].flip(0), dim=0)
    units, length = x.double() / x.double().norm(dim=1, keepdim=True), root.double().norm()
    trust = (units @ root.double() / length).clamp(min=0)
    expected = (trust / trust.sum()) @ units * length
    torch.testing.assert_close(fltrust(x, root).double(), expected, rtol=0, atol=1e-6)


def test_cosines_of_rows_of_very_different_length():
    x = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    similar = torch.corrcoef(torch.cat([x, -x], dim=1).double())  # of rows whose mean is zero, the cosines
    lengths = torch.tensor([1.0, 1e4, 1e-4, 1e-30, 3e3])
    found, norms = cosines(x * lengths[:, None])
    torch.testing.assert_close(found, similar, rtol=0, atol=1e-6)
    torch.testing.assert_close(norms, x.double().norm(dim=1) * lengths, rtol=1e-6, atol=0)
    assert cosines(torch.zeros(2, 3))[0].tolist() == [[0, 0], [0, 0]]


def authors_foolsgold(similar: np.ndarray) -> np.ndarray:
    """The loop of the authors' code (DistributedML/FoolsGold, foolsgold.py), written anew."""
    n = len(similar)
    cs = similar - np.eye(n)
    most = cs.max(axis=1)
    for i in range(n):
        for j in range(n):
            if i != j and most[i] < most[j]:
                cs[i, j] *= most[i] / most[j]
    credit = np.clip(1 - cs.max(axis=1), 0, 1)
    credit = credit / credit.max()
    credit[credit == 1] = 0.99
    return np.clip(np.log(np.maximum(credit, 1e-300) / (1 - credit)) + 0.5, 0, 1)


@pytest.mark.parametrize("seed", range(20))
def test_foolsgold_is_the_authors(seed: int):
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
    similar = cosines(x)[0].fill_diagonal_(1)
    expected = authors_foolsgold(similar.numpy().copy())
    np.testing.assert_allclose(foolsgold_weights(similar).numpy(), expected, atol=1e-6)


def test_foolsgold_judges_nobody_for_being_unlike_the_others():
    # The first points away from two that are alike: pardoning must not turn its signs round.
    similar = torch.tensor([[1.0, -0.5, -0.9], [-0.5, 1.0, 0.8], [-0.9, 0.8, 1.0]], dtype=torch.float64)
    assert foolsgold_weights(similar).tolist() == [1, 0, 0]


def test_flames_noise_is_on_parameters_alone():
    """A buffer is a statistic: with noise, BatchNorm's running variance would turn negative."""
    x = torch.randn(7, 20, generator=torch.Generator().manual_seed(0)) * 0.1 + 1
    noisy, plain = combine(FLAME(noise=0.1), x, buffers=4).vector, combine(FLAME(noise=0.0), x, buffers=4).vector
    assert torch.equal(noisy[16:], plain[16:])
    assert bool((noisy[:16] != plain[:16]).all())


@pytest.mark.parametrize("rule", [CoordinateMedian, GeometricMedian])
def test_mixing_says_how_many_clients_it_takes(rule: Any):
    mixed = rule(mixing=NearestNeighbourMixing(3))
    mixed.check(facts(7))
    with pytest.raises(ConfigError, match=r"^defense.aggregation.mixing.f=3: .* at least 7: 6 of 6 clients"):
        mixed.check(facts(6))
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)) + 5
    for clients in (2, 3, 6):
        small = combine(mixed, x[:clients])
        assert small.vector.abs().sum() == 0
        assert float(small.extras["cohort_too_small"]) == 1
    assert combine(mixed, x).vector.abs().sum() > 0


def test_a_cohort_is_counted_as_it_is_drawn():
    # A fixed cohort is rounded, and never empty.
    MultiKrum().check(facts(10, participation=0.46))
    CoordinateMedian().check(facts(5, participation=0.05))
    CoordinateMedian().check(facts(5, participation=0.05, sampling="poisson"))
    with pytest.raises(ConfigError, match="4 of 10 clients"):
        MultiKrum().check(facts(10, participation=0.46, sampling="poisson"))
    with pytest.raises(ConfigError, match="4 of 10 clients"):
        MultiKrum().check(facts(10, participation=0.5, dropout=0.1))


def test_dnc_that_drops_everybody_changes_nothing():
    # Each coordinate has a row that stands out: six draws of one may drop all six rows behind the screened one.
    x = torch.cat([100 * torch.eye(6) + 1, torch.full((1, 6), torch.nan)])
    rule, emptied = DnC(f=3, factor=0.6, coordinates=1, iterations=6), 0
    assert rule.least == 7
    for seed in range(200):
        found = combine(rule, x, seed=seed)
        assert bool(found.vector.isfinite().all())
        if not len(found.extras["kept"]):
            emptied += 1
            assert found.vector.abs().sum() == 0
    assert emptied


def test_dnc_drops_factor_times_f():
    """Told of one attacker it drops two with c = 2; algorithm 2 of Shejwalkar and Houmansadr removes c m updates."""
    x = torch.randn(11, 30, generator=torch.Generator().manual_seed(0)) * 0.3 + 1
    x[3], x[8] = 20.0, 19.0
    assert combine(DnC(f=1, factor=2.0), x).extras["kept"].tolist() == [0, 1, 2, 4, 5, 6, 7, 9, 10]
    assert len(combine(DnC(f=1, factor=1.0), x).extras["kept"]) == 10
    assert len(combine(DnC(f=2, factor=0.5), x).extras["kept"]) == 10


def test_flame_by_hand():
    """Algorithm 1 without noise: who points elsewhere is out; the others are clipped to the median of all norms."""
    turned = torch.tensor([0.0, 0.05, -0.05, 0.1, -0.1])
    lengths = torch.tensor([1.0, 2.0, 3.0, 4.0, 50.0])
    inside = torch.stack([turned.cos(), turned.sin()], dim=1)
    x = torch.cat([inside * lengths[:, None], torch.tensor([[-7.0, 0.0], [0.0, -0.5]])])
    found = combine(FLAME(noise=0.0), x)
    kept = found.extras["kept"].tolist()
    assert {0, 1, 2, 4} <= set(kept) <= {0, 1, 2, 3, 4}, "shorter and longer ones, and none that points elsewhere"
    bound = 3.0  # of 0.5, 1, 2, 3, 4, 7, 50
    expected = (inside * lengths.clamp(max=bound)[:, None])[kept].mean(dim=0)
    torch.testing.assert_close(found.vector, expected)


def test_foolsgold_remembers_who_pulled_the_same_way():
    """Two sybils whose noise cancels over two rounds point apart in each, and the same way in sum."""
    drawn = torch.Generator().manual_seed(0)
    aim, noise = torch.ones(60), 5 * torch.randn(60, generator=drawn)
    rule, state = FoolsGold(), {}
    context = round_of(60)
    kept = []
    for sign in (1, -1):
        x = torch.randn(6, 60, generator=drawn)
        x[4], x[5] = aim + sign * noise, aim - sign * noise
        cohort = [Update(row, context.layout, "update", 1, client=c) for c, row in enumerate(x)]
        kept.append(rule.combine(cohort, state, context).extras["kept"].tolist())
    assert kept == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3]]
    assert state["clients"] == list(range(6))


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("rule", EVERY, ids=lambda r: type(r).__name__)
def test_updates_of_nothing_stay_nothing(rule, n):
    """Clients that have nothing to change, or all the same: no division by their length or distance."""
    zero = combine(rule, torch.zeros(n, 4)).vector
    assert zero.tolist() == [0, 0, 0, 0]
    same = combine(rule, torch.full((n, 4), -2.5)).vector
    assert bool(same.isfinite().all())
