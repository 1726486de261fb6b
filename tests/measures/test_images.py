import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from privbench.benchmarks.measures import images


def pair(n: int, c: int, side: int, noise: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(side)
    a = torch.rand(n, c, side, side, generator=generator)
    return a, (a + noise * torch.randn(a.shape, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize(("c", "side"), [(1, 28), (3, 32), (3, 11)])
def test_against_scikit_image(c, side):
    a, b = pair(3, c, side)
    for k in range(3):
        x, y = a[k].double().numpy(), b[k].double().numpy()
        psnr = peak_signal_noise_ratio(x, y, data_range=1)
        assert float(images.psnr(a, b)[k]) == pytest.approx(psnr, abs=1e-6)
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
        ssim = structural_similarity(x, y, channel_axis=0, win_size=11, **options)
        assert float(images.ssim(a, b)[k]) == pytest.approx(ssim, abs=1e-6)


def test_ssim_of_equal_and_of_random_images():
    a, b = pair(4, 1, 28, noise=0.0)
    assert torch.allclose(images.ssim(a, b), torch.ones(4, dtype=torch.float64))
    other = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(9))
    assert images.ssim(a, other).abs().max() < 0.1


@pytest.mark.parametrize("side", [8, 10, 3])
def test_small_images_get_the_largest_odd_window(side):
    a, b = pair(2, 1, side)
    assert torch.isfinite(images.ssim(a, b)).all()
    assert torch.allclose(images.ssim(a, a), torch.ones(2, dtype=torch.float64))
    assert (images.ssim(a, b) < 1).all()


def test_one_exact_match_does_not_decide_the_mean():
    a, b = pair(2, 1, 28)
    b[0] = a[0]
    values = images.psnr(a, b)
    assert values[0] == images.CAP_DB
    assert torch.isfinite(values.mean())


def test_raw_is_clamped():
    mean, std = torch.full((1, 1, 1), 0.5), torch.full((1, 1, 1), 0.25)
    x = torch.tensor([-9.0, 0.0, 1.0, 9.0]).view(1, 1, 2, 2)
    assert images.to_raw(x, mean, std).flatten().tolist() == [0.0, 0.5, 0.75, 1.0]


def test_matching_undoes_a_permutation():
    a, b = pair(5, 1, 8, noise=0.05)
    order = torch.tensor([3, 1, 4, 0, 2])
    i, j = images.match(b[order], a)
    assert j.tolist() == list(range(5))
    assert order[i].tolist() == list(range(5))
    assert torch.equal(images.aligned(b[order], a, 0.5), b)


def test_records_without_a_counterpart_are_filled():
    a, _ = pair(3, 1, 8)
    out = images.aligned(a[1:2], a, 0.5)
    assert torch.equal(out[1], a[1])
    assert (out[[0, 2]] == 0.5).all()
    more = images.aligned(torch.cat([a, 1 - a]), a, 0.5)
    assert torch.equal(more, a)


def test_baselines_by_hand():
    truth = torch.zeros(1, 1, 8, 8)
    truth[..., 4:] = 1.0
    found = images.baselines(truth, 1 - truth)
    db = {name: float(images.psnr(x, truth)) for name, x in found.items()}
    assert db["grey"] == db["mean_colour"] == pytest.approx(-10 * np.log10(0.25))
    assert db["mosaic"] == images.CAP_DB  # the edge lies between two fields
    assert db["other_image"] == pytest.approx(0.0, abs=1e-9)
    assert "other_image" not in images.baselines(truth)
