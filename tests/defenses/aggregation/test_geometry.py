import pytest
import torch

from privbench.defenses.aggregation import geometry
from privbench.defenses.aggregation.coordinates import median, order_statistics, trimmed_mean
from privbench.defenses.aggregation.dnc import dnc_kept
from privbench.defenses.aggregation.geometric_median import centered_clipping, geometric_median
from privbench.defenses.aggregation.krum import bulyan, krum, multi_krum
from privbench.defenses.aggregation.mixing import nearest_neighbours
from privbench.defenses.aggregation.similarity import fltrust

TOLD_TWO = (
    median,
    geometric_median,
    lambda x: trimmed_mean(x, 2),
    lambda x: krum(x, 2),
    lambda x: multi_krum(x, 2),
    lambda x: bulyan(x, 2),
)
"""Rules of a matrix alone; those that take f are told of two attackers."""


def rows(n: int = 9, d: int = 100, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chunk", [7, 100, 1 << 14])
def test_distances(monkeypatch, chunk):
    monkeypatch.setattr(geometry, "CHUNK", chunk)
    x, other = rows(), rows(1, seed=1)[0]
    every = torch.cat([x, other[None]]).double()
    torch.testing.assert_close(geometry.squared_distances(x, other), torch.cdist(every, every) ** 2, rtol=1e-5, atol=0)


def test_distances_of_updates_that_differ_little_beside_their_length():
    x = 1000 + 0.01 * rows().double()
    exact = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    torch.testing.assert_close(geometry.squared_distances(x.float()), exact, rtol=0.05, atol=0)
    far = torch.cat([x.float(), torch.full((2, 100), 1e8)])
    torch.testing.assert_close(geometry.squared_distances(far)[:9, :9], exact, rtol=0.05, atol=0)


def test_distances_of_mixtures_and_to_points():
    x = rows().double()
    mixing = torch.rand(4, 9, dtype=torch.float64)
    mixing /= mixing.sum(dim=1, keepdim=True)
    mixed = mixing @ x
    squared = geometry.squared_distances(x)
    torch.testing.assert_close(geometry.mixed_distances(squared, mixing), torch.cdist(mixed, mixed) ** 2)
    torch.testing.assert_close(geometry.to_point(squared, mixing[0]), (x - mixed[0]).square().sum(dim=1))
    torch.testing.assert_close(geometry.weighted(mixing[1], x), mixed[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_dtype_comes_back_as_it_was(dtype):
    x = rows(11).to(dtype)
    before = x.clone()
    for rule in TOLD_TWO:
        found, exact = rule(x), rule(x.double())
        assert found.dtype == dtype
        tolerance = {torch.float64: 1e-9, torch.float32: 1e-5}.get(dtype, 0.02)
        torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)
    assert torch.equal(x, before)


def test_order_statistics_of_mixtures():
    x = rows(40, 50)
    mixing = nearest_neighbours(geometry.squared_distances(x), 5)
    ((_, found),) = order_statistics(x, range(3, 9), mixing)
    torch.testing.assert_close(torch.stack(found), (mixing.float() @ x).sort(dim=0).values[3:9])


def test_a_row_is_its_own_neighbour_also_among_copies():
    x = torch.ones(6, 3)
    assert nearest_neighbours(geometry.squared_distances(x), 4).diagonal().tolist() == [0.5] * 6


def test_bulyan_by_hand():
    """Seven values, f = 1: Krum leaves five, of which the three nearest to their median count."""
    x = torch.tensor([[0.0], [1.0], [2.0], [3.0], [5.0], [9.0], [1000.0]])
    assert bulyan(x, 1).tolist() == pytest.approx([2.0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu():
    x = rows(11)
    for rule in (median, geometric_median, lambda x: trimmed_mean(x, 2), lambda x: multi_krum(x, 2)):
        torch.testing.assert_close(rule(x.cuda()).cpu(), rule(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (lambda x: trimmed_mean(x, 3), "f=3: takes at least 7 updates, of which there are 6"),
        (lambda x: trimmed_mean(x, -1), "f=-1: a number of attackers from 0"),
        (lambda x: krum(x, 3), "f=3: takes at least 7 updates"),
        (lambda x: multi_krum(x, -1), "f=-1: a number"),
        (lambda x: multi_krum(x, 1, m=7), "m=7: 1 to 6"),
        (lambda x: multi_krum(x, 1, m=0), "m=0: 1 to 6"),
        (lambda x: bulyan(x, 1), "f=1: takes at least 7 updates"),
        (lambda x: dnc_kept(x, 3, torch.Generator(), factor=2.0), "f=3: takes at least 7 updates"),
        (lambda x: nearest_neighbours(geometry.squared_distances(x), 6), "f=6: takes at least 7 updates"),
    ],
)
def test_functions_refuse_more_attackers_than_they_can_take(rule, said):
    """Rather than a wrong number: a mean of seven of six updates would be a seventh too short."""
    with pytest.raises(ValueError, match=said):
        rule(rows(6))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_rows_that_do_not_lie_next_to_each_other(dtype):
    """Columns of a larger matrix, every second row, or a transposed one; the input stays as it is."""
    wide = rows(22, 60).to(dtype)
    for x in (wide[::2, 3:43:2], wide[:20, :11].T, rows(1, 20).to(dtype).expand(11, 20)):
        assert not x.is_contiguous()
        before = x.clone()
        for rule in (*TOLD_TWO, lambda x: centered_clipping(x, x[0], 0.5), lambda x: fltrust(x, x[0])):
            torch.testing.assert_close(rule(x), rule(before.contiguous()))
        assert torch.equal(x, before)


@pytest.mark.parametrize(("n", "d"), [(1, 5), (2, 1), (3, 0), (1, 0)])
def test_the_smallest_cohorts_and_vectors(n, d):
    x = rows(n, d)
    for rule in (
        median,
        geometric_median,
        lambda x: trimmed_mean(x, 0),
        lambda x: krum(x, 0),
        lambda x: multi_krum(x, 0),
    ):
        found = rule(x)
        assert found.shape == (d,)
        assert bool(((found >= x.amin(0)) & (found <= x.amax(0))).all())
        if n == 1:
            assert torch.equal(found, x[0])
