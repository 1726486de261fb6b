import pytest
import torch

from privbench.benchmarks.federation.randomness import chosen, stream
from privbench.benchmarks.federation.sampling import answering, cohort


def test_streams_differ_by_each_name_and_by_nothing_else():
    names = [(0, "a", 1, 1), (1, "a", 1, 1), (0, "b", 1, 1), (0, "a", 2, 1), (0, "a", 1, 2), (0, "a1", 1, 1)]
    names += [(0, "a", 1, 1, 2), (0, "a", 1, 12), (0, "a", 1, 1, 12)]
    draws = [torch.rand(4, generator=stream(*n)).tolist() for n in names]
    assert len({tuple(d) for d in draws}) == len(names)
    torch.rand(5)
    assert torch.rand(4, generator=stream(*names[0])).tolist() == draws[0]


@pytest.mark.parametrize(("participation", "size"), [(1.0, 10), (0.5, 5), (0.26, 3), (0.01, 1)])
def test_fixed_cohorts(participation, size):
    drawn = [cohort(10, participation, "fixed", stream(0, "cohort", r)) for r in range(1, 100)]
    assert all(len(set(c)) == size and list(c) == sorted(c) and max(c) < 10 for c in drawn)
    assert set().union(*drawn) == set(range(10))


def test_poisson_cohorts_may_be_empty_and_have_the_right_rate():
    drawn = [cohort(4, 0.2, "poisson", stream(0, "cohort", r)) for r in range(1, 2001)]
    assert () in drawn
    rate = sum(map(len, drawn)) / (4 * 2000)
    assert abs(rate - 0.2) < 5 * (0.2 * 0.8 / 8000) ** 0.5
    together = sum(0 in c and 1 in c for c in drawn) / 2000
    assert abs(together - 0.04) < 5 * (0.04 * 0.96 / 2000) ** 0.5, "clients are drawn independently"


@pytest.mark.parametrize("part", [0.25, 0.75])
def test_rates_between_two_float32_uniforms_are_kept(part):
    """Compared with a float32 uniform, a rate would be rounded to a multiple of 2^-24."""
    times = 0
    for seed in range(2000):
        cell = float(torch.rand(1, generator=torch.Generator().manual_seed(seed)))
        rate = cell + part * 2**-24
        times += bool(chosen(1, rate, torch.Generator().manual_seed(seed)))
    assert abs(times / 2000 - part) < 5 * (part * (1 - part) / 2000) ** 0.5


def test_elsewhere_one_float32_uniform_decides():
    uniform = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    for rate in (0.0, 0.1, 0.5, 1.0):
        drawn = chosen(1000, rate, torch.Generator().manual_seed(0))
        assert torch.equal(drawn, uniform.double() < rate)


def test_poisson_at_one_takes_everybody():
    assert cohort(7, 1.0, "poisson", stream(0, "cohort", 1)) == tuple(range(7))


def test_dropout():
    assert answering((1, 2, 3), 0.0, stream(0, "dropout")) == (1, 2, 3)
    stays = [answering((1, 2, 3, 4), 0.3, stream(0, "dropout", r)) for r in range(1, 1001)]
    assert all(set(s) <= {1, 2, 3, 4} and list(s) == sorted(s) for s in stays)
    assert abs(sum(map(len, stays)) / 4000 - 0.7) < 5 * (0.21 / 4000) ** 0.5
