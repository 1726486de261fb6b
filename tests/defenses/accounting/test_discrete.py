"""A sum of discrete Gaussians: what is stated is no less than what it really gives."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from privbench.benchmarks.build import ConfigError
from privbench.defenses.accounting.accountant import Terms
from privbench.defenses.accounting.discrete import Grid

STEP = 0.25


def mass(parameter: float, reach: int = 400) -> np.ndarray:
    k = np.arange(-reach, reach + 1)
    m = np.exp(-(k**2) / (2 * parameter**2))
    return m / m.sum()


def renyi(shares: int, parameter: float, shift: int, order: float) -> float:
    """Of the sum of ``shares`` discrete Gaussians and the same moved by ``shift``, by convolution."""
    one = mass(parameter)
    total = one
    for _ in range(shares - 1):
        total = np.convolve(total, one, mode="same")
    p, q = total[shift:], total[: len(total) - shift]
    seen = (p > 1e-250) & (q > 1e-250)
    terms: Any = order * np.log(p[seen]) + (1 - order) * np.log(q[seen])
    return float(np.logaddexp.reduce(terms)) / (order - 1)


@pytest.mark.parametrize("shares", [1, 2, 3, 8])
@pytest.mark.parametrize("parameter", [0.5, 0.6, 1.0, 2.0])
def test_the_divergence_is_within_what_is_accounted_for(shares: int, parameter: float):
    """One coordinate, moved by the whole clip of two steps: computed from the definition, at several orders."""
    clip, sum_multiplier = 2 * STEP, parameter * math.sqrt(shares) / 2
    counted = Grid(STEP, 1).multiplier(sum_multiplier, clip, shares)
    assert counted <= sum_multiplier * (1 + 1e-12)
    for order in (1.1, 2.0, 5.0):
        assert renyi(shares, parameter, 2, order) <= order / (2 * counted**2) * (1 + 1e-6)


def test_without_the_extra_term_a_coarse_grid_would_be_understated():
    """Two draws of parameter 1/2 are further from a Gaussian than their variance says: the term is not idle."""
    plain = 0.5 * math.sqrt(2)
    assert Grid(STEP, 1).multiplier(plain, STEP, 2) < 0.9 * plain
    assert Grid(STEP, 1).multiplier(plain, STEP, 1) == pytest.approx(plain, rel=1e-12)


def test_finer_grids_come_to_the_continuous_mechanism():
    found = [Grid(step, 10_000).multiplier(1.0, 1.0, 20) for step in (0.4, 0.2, 0.1, 0.01)]
    assert all(a <= b for a, b in pairwise(found))
    assert found[-1] == 1.0
    assert Terms("rdp").epsilon([((1.0, found[0]), 5)], 1e-5) > Terms("rdp").epsilon([((1.0, 1.0), 5)], 1e-5)


def test_rounding_stays_within_the_clip():
    grid, rng = Grid(0.01, 400), np.random.default_rng(0)
    bound = grid.bound(1.0)
    for _ in range(200):
        x = rng.normal(size=400)
        x *= bound / np.linalg.norm(x)
        assert np.linalg.norm(np.round(x / grid.step) * grid.step) <= 1.0
    worst = np.full(400, grid.step / 2)  # rounding up all at once
    assert np.linalg.norm(worst) == pytest.approx(1.0 - bound)


def test_grids_without_a_proof_are_refused():
    with pytest.raises(ConfigError, match="a proof needs half of one") as caught:
        Grid(STEP, 1).multiplier(0.49 * math.sqrt(4), STEP, 4)
    assert caught.value.field == "defense.channel.bits"
    with pytest.raises(ConfigError, match=r"moves them by 0\.125"):
        Grid(STEP, 1).bound(1.0)
    assert Grid(STEP, 1).multiplier(0.0, 1.0, 4) == 0.0, "no noise is no guarantee"
