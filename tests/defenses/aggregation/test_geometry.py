import pytest
import torch

from privbench.defenses.aggregation import geometry
from privbench.defenses.aggregation.coordinates import median, order_statistics, trimmed_mean
from privbench.defenses.aggregation.geometric_median import geometric_median
from privbench.defenses.aggregation.krum import bulyan, krum, multi_krum
from privbench.defenses.aggregation.mixing import nearest_neighbours


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
    for rule in (
        median,
        geometric_median,
        lambda x: trimmed_mean(x, 2),
        lambda x: krum(x, 2),
        lambda x: multi_krum(x, 2),
        lambda x: bulyan(x, 2),
    ):
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
