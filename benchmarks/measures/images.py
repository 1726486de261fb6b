"""How close two images are, and what one gets without any attack.

All images are raw, ``(n, C, H, W)`` in [0, 1]; what an attack returns is standardised: :func:`to_raw`.
"""

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

CAP_DB = 100.0
"""PSNR of an exact match, which would be infinite: one of them must not decide a mean."""


def to_raw(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Standardised ``(n, C, H, W)`` to raw, clamped to [0, 1]."""
    return (x * std + mean).clamp(0, 1)


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of each record, ``(n,)`` float64; any input shape."""
    return (a.double() - b.double()).square().flatten(1).mean(1)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """``-10 log10(MSE)`` in dB of each image, ``(n,)``: peak 1, at most :data:`CAP_DB`."""
    return (-10 * torch.log10(mse(a, b))).clamp_max(CAP_DB)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each image, ``(n,)`` in [-1, 1] (Wang et al. 2004).

    Gaussian window 11x11 with sigma 1.5, K1 = 0.01, K2 = 0.03, data range 1, mean over channels and over the positions
    at which the whole window fits. Images with a side below 11 get the largest odd window that fits, same sigma.
    """
    a, b = a.double(), b.double()
    side = min(11, *a.shape[-2:])
    side -= 1 - side % 2
    offsets = torch.arange(side, dtype=a.dtype) - side // 2
    line = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum().square()

    def blur(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        out = F.conv2d(x.reshape(n * c, 1, h, w), window[None, None].to(x))
        return out.view(n, c, *out.shape[-2:])

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (luminance * structure).flatten(1).mean(1)


def match(found: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """One-to-one assignment with the least summed MSE.

    Args:
        found: ``(m, ...)``.
        truth: ``(n, ...)``.

    Returns:
        Indices ``(i, j)``, each ``(min(m, n),)`` int64: ``found[i[k]]`` belongs to ``truth[j[k]]``, ``j`` ascending.
    """
    flat_found, flat_truth = found.double().flatten(1), truth.double().flatten(1)
    cost = torch.cdist(flat_truth, flat_found, compute_mode="donot_use_mm_for_euclid_dist").square()
    j, i = linear_sum_assignment(cost.cpu().numpy())
    return torch.as_tensor(i), torch.as_tensor(j)


def aligned(found: Tensor, truth: Tensor, fill: float) -> Tensor:
    """``found`` in the order of ``truth``, same shape as ``truth``; records without a counterpart are ``fill``."""
    i, j = match(found, truth)
    out = torch.full_like(truth, fill)
    out[j] = found[i].to(out)
    return out


def baselines(truth: Tensor, others: Tensor | None = None) -> dict[str, Tensor]:
    """What an attack has to beat, each ``(n, C, H, W)``: nothing of it comes from a gradient.

    ``grey``: 0.5 everywhere. ``mean_colour``: each image's own mean colour. ``mosaic``: its own 4x4 mosaic, the means
    of 16 equal fields. ``other_image``: other records, matched as a reconstruction is, so that the gain of choosing the
    best of many is in the baseline too; only where ``others`` ``(m, C, H, W)`` are given.
    """
    n, c, h, w = truth.shape
    coarse = F.adaptive_avg_pool2d(truth, (min(4, h), min(4, w)))
    found = {
        "grey": torch.full_like(truth, 0.5),
        "mean_colour": truth.mean((2, 3), keepdim=True).expand(n, c, h, w),
        "mosaic": F.interpolate(coarse, size=(h, w), mode="nearest"),
    }
    if others is not None and len(others):
        found["other_image"] = aligned(others, truth, 0.5)
    return found
