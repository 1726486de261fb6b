"""The rules that ByzFL has too give what its rules give."""

from typing import Any

import byzfl as _byzfl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from privbench.defenses.aggregation import geometry
from privbench.defenses.aggregation.coordinates import median, trimmed_mean
from privbench.defenses.aggregation.geometric_median import centered_clipping, geometric_median
from privbench.defenses.aggregation.krum import krum, multi_krum
from privbench.defenses.aggregation.mixing import buckets, nearest_neighbours

byzfl: Any = _byzfl  # without types of its own: what is inferred of its rules is arrays or tensors


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[Tensor, int]:
    """Honest rows around a point and f attackers elsewhere, ``n >= 2 f + 3``."""
    f = draw(st.integers(0, 3))
    n = draw(st.integers(2 * f + 3, 12)) if f < 3 else 2 * f + 3
    d, seed = draw(st.integers(2, 40)), draw(st.integers(0, 10_000))
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=made) + 3
    x[:f] += draw(st.sampled_from([0.5, 20.0, -300.0]))
    return x[torch.randperm(n, generator=made)], f


def close(found: Tensor, theirs: Tensor) -> None:
    scale = max(1.0, float(theirs.abs().max()))
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-5 * scale)


@settings(max_examples=60, deadline=None)
@given(cohort=cohorts())
def test_parity(cohort):
    x, f = cohort
    n = len(x)
    if n % 2:
        # Of an even number theirs is the lower of the middle two.
        close(median(x), byzfl.Median()(x.clone()))
    close(trimmed_mean(x, f), byzfl.TrMean(f)(x.clone()))
    # They count the n - f - 1 nearest others, the paper n - f - 2.
    close(krum(x, f, neighbours=n - f - 1), byzfl.Krum(f)(x.clone()))
    close(multi_krum(x, f, neighbours=n - f - 1), byzfl.MultiKrum(f)(x.clone()))
    center = x.mean(dim=0) + 1
    for iterations in (1, 3):
        theirs = byzfl.CenteredClipping(L=iterations, tau=2.0)
        theirs.m = center.clone()
        close(centered_clipping(x, center, 2.0, iterations), theirs(x.clone()))
    mixed = nearest_neighbours(geometry.squared_distances(x), f).float() @ x
    close(mixed, byzfl.NNM(f)(x.clone()))


@settings(max_examples=30, deadline=None)
@given(cohort=cohorts())
def test_the_geometric_median_is_theirs_at_convergence(cohort):
    x, _ = cohort
    theirs = byzfl.GeometricMedian(nu=1e-7, T=3000)(x.double())
    mine = geometric_median(x.double())

    def cost(point: Tensor) -> float:
        return float((x.double() - point).norm(dim=1).sum())

    assert cost(mine) <= cost(theirs.double()) * (1 + 1e-6)
    scale = max(1.0, float(x.abs().max()))
    torch.testing.assert_close(mine, theirs.double(), rtol=1e-3, atol=1e-3 * scale)


@pytest.mark.parametrize(("n", "size"), [(7, 3), (6, 2), (5, 5), (4, 1)])
def test_buckets_are_means_of_a_partition(n, size):
    matrix = buckets(n, size, torch.Generator().manual_seed(1))
    theirs = byzfl.Bucketing(size)(torch.eye(n))
    assert matrix.shape == theirs.shape
    assert matrix.sum(dim=1).tolist() == pytest.approx([1.0] * len(matrix))
    assert sorted((matrix > 0).sum(dim=1).tolist()) == sorted((theirs > 0).sum(dim=1).tolist())
    assert (matrix > 0).sum(dim=0).tolist() == [1] * n


def test_faults_of_theirs_that_ours_has_not():
    x = torch.randn(7, 5, dtype=torch.float64)
    x[0] = torch.nan
    assert bool(byzfl.Median()(x.clone()).isnan().any()), "one client's NaN is their result"
    given = torch.randn(3, 4) * 10
    before = given.clone()
    byzfl.Clipping(1.0)(given)
    assert not torch.equal(given, before), "their clipping changes its input"
    assert byzfl.MultiKrum(1)(torch.randn(7, 5, dtype=torch.float64)).dtype == torch.float32
    assert multi_krum(torch.randn(7, 5, dtype=torch.float64), 1).dtype == torch.float64
