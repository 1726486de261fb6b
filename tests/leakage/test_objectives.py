import pytest
import torch

from privbench.attacks.leakage.objectives import Cosine, SquaredDistance
from privbench.attacks.leakage.priors import TotalVariation


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 5, 7), (2, 4, 9), (2, 6)])
def test_total_variation_of_a_constant_is_zero(shape):
    assert TotalVariation()(torch.full(shape, -0.4)) == 0


def test_total_variation_of_a_step():
    x = torch.zeros(1, 1, 2, 4)
    x[..., 2:] = 3.0
    assert TotalVariation()(x) == pytest.approx(1.0)  # one jump of 3 among three horizontal neighbours
    assert TotalVariation()(x[0, :, 0][None]) == pytest.approx(1.0)


def test_cosine_is_one_minus_cosine_and_blind_to_length():
    g, t = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    expected = 1 - torch.cosine_similarity(g.double(), t.double(), dim=0)
    assert float(Cosine()(g, t)) == pytest.approx(float(expected), abs=1e-6)
    assert float(Cosine()(7 * g, t)) == pytest.approx(float(expected), abs=1e-6)
    assert torch.isfinite(Cosine()(torch.zeros_like(t), t))


def test_cosine_does_not_cancel():
    """Near its minimum ``1 - cos`` in float32 is 0 or 6e-8; this form still has digits."""
    t = torch.ones(1000, dtype=torch.float64)
    g = t.clone()
    g[0] += 1e-3
    expected = float(1 - torch.cosine_similarity(g, t, dim=0))
    assert float(Cosine()(g.float(), t.float())) == pytest.approx(expected, rel=0.05)


def test_squared_distance_is_relative():
    t = torch.tensor([3.0, 4.0])
    assert SquaredDistance()(torch.zeros(2), t) == 1
    assert SquaredDistance()(t, t) == 0
