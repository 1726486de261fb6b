import numpy as np
import pytest
import torch
from scipy import stats

from privbench.defenses.noise import discrete_gaussian, gaussian


@pytest.mark.parametrize("source", ["seeded", "system"])
def test_noise_is_standard_normal(source):
    draws = gaussian(200_001, 1.0, source, torch.Generator().manual_seed(0))
    assert draws.shape == (200_001,)
    assert draws.dtype == torch.float32
    # 6 sigma of the estimators, 1e-6 for the test: a false alarm about once in a million runs
    n = len(draws)
    x = draws.double()
    assert abs(float(x.mean())) < 6 / n**0.5
    assert abs(float(x.var()) - 1) < 6 * (2 / n) ** 0.5
    assert abs(float((x**3).mean())) < 6 * (15 / n) ** 0.5
    assert abs(float((x**4).mean()) - 3) < 6 * (96 / n) ** 0.5
    assert stats.kstest(x.numpy(), "norm").pvalue > 1e-6
    halves = x[: n // 2], x[n // 2 + 1 :]
    assert abs(float((halves[0] * halves[1]).mean())) < 6 / (n // 2) ** 0.5, "the two halves of Box-Muller are apart"


def test_seeded_noise_is_reproducible_and_scaled():
    one, two = (gaussian(10, 3.0, "seeded", torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(one, 3 * gaussian(10, 1.0, "seeded", torch.Generator().manual_seed(1)))
    generator = torch.Generator().manual_seed(1)
    assert not torch.equal(gaussian(10, 1.0, "seeded", generator), gaussian(10, 1.0, "seeded", generator))


def test_system_noise_has_no_seed():
    one, two = (gaussian(10, 1.0, "system", torch.Generator().manual_seed(1)) for _ in range(2))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("size", [0, 1, 2, 3])
@pytest.mark.parametrize("source", ["seeded", "system"])
def test_small_sizes(size, source):
    assert gaussian(size, 1.0, source, torch.Generator()).shape == (size,)
    assert not gaussian(size, 0.0, source, torch.Generator()).any()


@pytest.mark.parametrize("source", ["seeded", "system"])
@pytest.mark.parametrize("parameter", [0.4, 1.0, 3.7])
def test_discrete_noise_has_the_probabilities_of_its_definition(source, parameter):
    """Chi-squared against exp(-k^2 / (2 s^2)) over its sum (Canonne et al. 2020, definition 1)."""
    draws = discrete_gaussian(100_000, parameter, source, torch.Generator().manual_seed(0)).numpy()
    assert np.array_equal(draws, np.round(draws))
    every = np.arange(-40, 41)
    mass = np.exp(-(every**2) / (2 * parameter**2))
    expected = len(draws) * mass / mass.sum()
    common = expected >= 10
    found = np.array([(draws == k).sum() for k in every[common]])
    rest = max(expected[~common].sum(), 1e-9)
    outside = len(draws) - found.sum()
    assert stats.chisquare(found, expected[common] * found.sum() / expected[common].sum()).pvalue > 1e-6
    assert stats.poisson.sf(outside - 1, rest) > 1e-6


def test_wide_discrete_noise_is_normal_on_integers():
    draws = discrete_gaussian(200_000, 1e5, "seeded", torch.Generator().manual_seed(0)).numpy()
    assert stats.kstest(draws / 1e5, "norm").pvalue > 1e-6
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 6 / len(draws) ** 0.5
    # Remainders are uniform: no coordinate of the grid is preferred.
    assert stats.chisquare(np.bincount(draws.astype(np.int64) % 64, minlength=64)).pvalue > 1e-6


def test_discrete_noise_is_reproducible_and_of_any_size():
    one, two = (discrete_gaussian(50, 2.0, "seeded", torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, two)
    for size in (0, 1, 5):
        assert discrete_gaussian(size, 2.0, "system", torch.Generator()).shape == (size,)
        assert not discrete_gaussian(size, 0.0, "seeded", torch.Generator()).any()
