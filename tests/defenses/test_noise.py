import pytest
import torch
from scipy import stats

from privbench.defenses.noise import gaussian


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
