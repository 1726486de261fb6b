import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.server import RoundContext
from privbench.benchmarks.federation.update import PIECE, Layout, Update
from privbench.defenses.aggregation import ClippedMean, CoordinateMedian, Diverged, Mean, geometry
from privbench.defenses.aggregation.coordinates import median
from privbench.defenses.aggregation.mean import clip_factor

COHORTS = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=7),
    elements=st.floats(-100, 100, width=32).map(lambda v: round(v, 2)),
)
RULES = [Mean(), CoordinateMedian()]
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-3}


@dataclass(frozen=True)
class Plan:
    """As much of a privacy plan as a rule looks at."""

    clip: float
    unit: str = "client"


def round_of(size: int, plan: Any = None, expected: float = 1.0, weighting: str = "equal") -> RoundContext:
    layout = Layout(("w",), ((size,),), 1)
    return RoundContext(0, 1, (), expected, weighting, layout, "update", 0.1, plan, frozenset())


def combine(rule: Any, matrix: Any, records: list[int] | None = None, **context: Any) -> Update:
    matrix = torch.as_tensor(np.asarray(matrix, dtype=np.float32)).clone()
    layout = Layout(("w",), ((matrix.shape[1],),), 1)
    counts = records or [1] * len(matrix)
    cohort = [Update(row, layout, "update", n) for row, n in zip(matrix, counts, strict=True)]
    before = matrix.clone()
    found = rule.combine(iter(cohort), {}, round_of(matrix.shape[1], **context))
    assert torch.equal(before.nan_to_num(), matrix.nan_to_num()), "the input is not changed"
    assert found.vector.dtype == torch.float32
    return found


@pytest.mark.parametrize("rule", RULES, ids=["mean", "median"])
@settings(max_examples=60, deadline=None)
@given(cohort=COHORTS, seed=st.integers(0, 1000))
def test_permutation_invariance(rule, cohort, seed):
    order = np.random.default_rng(seed).permutation(len(cohort))
    torch.testing.assert_close(combine(rule, cohort).vector, combine(rule, cohort[order]).vector, **CLOSE)


@pytest.mark.parametrize("rule", RULES, ids=["mean", "median"])
@settings(max_examples=60, deadline=None)
@given(cohort=COHORTS, shift=st.floats(-50, 50))
def test_translation_equivariance(rule, cohort, shift):
    torch.testing.assert_close(combine(rule, cohort + shift).vector, combine(rule, cohort).vector + shift, **CLOSE)


@pytest.mark.parametrize("rule", RULES, ids=["mean", "median"])
@settings(max_examples=60, deadline=None)
@given(cohort=COHORTS, scale=st.floats(-10, 10))
def test_scale_equivariance(rule, cohort, scale):
    torch.testing.assert_close(
        combine(rule, cohort * scale).vector, combine(rule, cohort).vector * scale, rtol=1e-4, atol=5e-3
    )


@settings(max_examples=60, deadline=None)
@given(cohort=COHORTS)
def test_median_is_numpys(cohort):
    np.testing.assert_allclose(
        median(torch.from_numpy(cohort)).numpy(), np.median(cohort, axis=0), rtol=1e-5, atol=1e-5
    )
    if len(cohort) % 2:
        assert torch.equal(median(torch.from_numpy(cohort)), torch.from_numpy(cohort).median(dim=0).values)


def test_median_over_chunk_borders(monkeypatch):
    matrix = torch.randn(4, 23, generator=torch.Generator().manual_seed(0))
    whole = median(matrix)
    monkeypatch.setattr(geometry, "CHUNK", 7)
    assert torch.equal(median(matrix), whole)


def test_mean_weighs_by_records():
    matrix = [[1.0, 0.0], [4.0, 3.0]]
    assert combine(Mean(), matrix, [1, 2], weighting="records").vector.tolist() == [3.0, 2.0]
    assert combine(Mean(), matrix, [1, 2], weighting="equal").vector.tolist() == [2.5, 1.5]
    assert combine(Mean(), matrix, [1, 2]).records == 3


def test_a_mean_is_summed_in_float64():
    values = [[1e8], [1.0], [-1e8], [1.0], [1e8], [-1e8]]
    assert combine(Mean(), values).vector.item() == pytest.approx(2 / 6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite(bad):
    matrix = [[1.0, 2.0], [bad, 0.0], [3.0, 4.0]]
    for rule in (Mean(), ClippedMean(10.0), CoordinateMedian()):
        found = combine(rule, matrix)
        assert found.vector.tolist() == pytest.approx([2.0, 3.0])
        assert found.extras["screened"].tolist() == [1]
        with pytest.raises(Diverged, match="round 1"):
            combine(rule, [[bad, 0.0]])
    private = combine(ClippedMean(), matrix, plan=Plan(10.0), expected=4.0)
    assert private.vector.tolist() == pytest.approx([1.0, 1.5])
    assert private.extras == {}, "who was clipped or dropped is not for free"
    none = combine(ClippedMean(), [[bad, 0.0], [bad, bad]], plan=Plan(10.0), expected=4.0)
    assert none.vector.tolist() == [0.0, 0.0]
    assert none.extras == {}, "that there was nothing to sum isn't either"


@pytest.mark.parametrize("rule", [Mean(), CoordinateMedian(), ClippedMean(1.0)], ids=["mean", "median", "clipped"])
def test_an_empty_cohort_gives_zero(rule):
    found = rule.combine(iter(()), {}, round_of(3))
    assert found.vector.tolist() == [0, 0, 0]
    assert found.records == 0


@settings(max_examples=80, deadline=None)
@given(
    vector=arrays(np.float32, st.integers(1, 500), elements=st.floats(-1e4, 1e4, width=32)),
    bound=st.floats(1e-3, 1e3),
)
def test_a_clipped_update_never_exceeds_the_bound(vector, bound):
    # one client, the sum divided by one: the aggregate is its clipped update
    found = combine(ClippedMean(), vector[None], plan=Plan(bound)).vector
    norm = float(found.double().norm())
    assert norm <= bound
    if np.linalg.norm(vector.astype(np.float64)) <= bound * 0.999999:
        np.testing.assert_allclose(found.numpy(), vector, rtol=2e-6)
    else:
        assert norm >= bound * (1 - 1e-5) or np.linalg.norm(vector) < bound * (1 + 1e-5)


@given(st.floats(0, 1e30), st.floats(1e-6, 1e6))
def test_clip_factor(norm, bound):
    factor = clip_factor(norm, bound)
    assert 0 <= factor <= 1
    assert factor * norm <= bound


def test_the_normaliser_is_fixed_under_a_plan():
    one, two = [[0.5, 0.0]], [[0.5, 0.0], [0.5, 0.0]]
    assert combine(ClippedMean(), one, plan=Plan(1.0), expected=4.0).vector[0].item() == pytest.approx(0.125)
    assert combine(ClippedMean(), two, plan=Plan(1.0), expected=4.0).vector[0].item() == pytest.approx(0.25)
    assert combine(ClippedMean(1.0), one, expected=4.0).vector[0].item() == pytest.approx(0.5)


def test_one_client_moves_a_private_mean_by_at_most_clip_over_expected():
    cohort = torch.randn(6, 20, generator=torch.Generator().manual_seed(0)).numpy()
    cohort[-1] *= 1e6
    base = combine(ClippedMean(), cohort[:-1], plan=Plan(0.7), expected=5.0).vector
    more = combine(ClippedMean(), cohort, plan=Plan(0.7), expected=5.0).vector
    moved = float((more - base).double().norm())
    assert 0.999 * 0.7 / 5 < moved <= 0.7 / 5 * (1 + 1e-6)


def test_share_of_clipped_updates():
    found = combine(ClippedMean(1.0), [[0.5, 0.0], [3.0, 0.0], [0.0, 4.0], [0.1, 0.1]])
    assert float(found.extras["clipped_share"]) == 0.5


@pytest.mark.parametrize("clip", [0.0, -1.0, math.inf, math.nan])
def test_a_clip_is_positive(clip):
    with pytest.raises(ConfigError, match="clip"):
        ClippedMean(clip)


@pytest.mark.parametrize("rule", [Mean(), ClippedMean(10.0)], ids=["mean", "clipped"])
@pytest.mark.parametrize("bad", [6e4, 1e30, -3e38])
def test_an_absurdly_long_update_is_left_out_of_a_mean_as_well(rule, bad):
    found = combine(rule, [[bad, 0.0], [1.0, 2.0], [3.0, 4.0]])
    assert found.vector.tolist() == pytest.approx([2.0, 3.0])
    assert found.extras["screened"].tolist() == [0]


def test_long_updates_among_long_ones_stay():
    """As before rules that hold the cohort: absurd is what is beyond 10,000 times the median norm as well."""
    matrix = [[3e4, 0.0], [0.0, 5e4], [2e8, 0.0], [1.0, 1.0], [6e8, 0.0]]
    found = combine(Mean(), matrix)
    assert found.extras["screened"].tolist() == [4]
    assert found.vector.tolist() == pytest.approx([(3e4 + 2e8 + 1) / 4, (5e4 + 1) / 4])
    assert combine(CoordinateMedian(), matrix).extras["screened"].tolist() == [4]


def test_under_a_plan_nobody_counts_by_the_norms_of_others():
    """Else a neighbouring cohort without one client could differ by another client as well."""
    found = combine(ClippedMean(), [[1e30, 0.0], [0.6, 0.8]], plan=Plan(1.0), expected=2.0)
    assert found.vector.tolist() == pytest.approx([0.8, 0.4], rel=1e-5)


def test_a_long_vector_is_summed_piece_by_piece_to_the_same_bit():
    cohort = np.random.default_rng(0).standard_normal((3, PIECE + 5)).astype(np.float32)
    total = np.array([1.0, 2.0, 4.0]) @ cohort.astype(np.float64)
    found = combine(Mean(), cohort, [1, 2, 4], weighting="records").vector.numpy()
    assert np.array_equal(found, (total / 7.0).astype(np.float32))
