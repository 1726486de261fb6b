"""Morlet wavelets and their Gaussian low-pass filter, in frequency (Bruna and Mallat 2013; kymatio 0.3)."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.fft import fft, fft2, ifft

SIGMA, XI = 0.8, 3 * math.pi / 4
"""The finest wavelet's width (pixels) and frequency (radians a pixel). Each scale doubles the one, halves the other."""

COPIES = 2
"""A filter is summed over so many periods on each side, and so is periodic in the padded picture."""


@dataclass(frozen=True)
class Bank:
    """Filters for one padded size, real in frequency.

    Args:
        psi: by scale, ``(angles, height, width)``; zero at frequency zero.
        phi: the low-pass filter's factors for rows and columns, ``(height,)`` and ``(width,)``; one at frequency zero.
    """

    psi: tuple[Tensor, ...]
    phi: tuple[Tensor, Tensor]

    def wavelets(self, scale: int, resolution: int) -> Tensor:
        """Those of one scale, for pictures that were subsampled by 2^resolution."""
        return _cut(_cut(self.psi[scale], resolution, 1), resolution, 2)

    def average(self, u: Tensor, resolution: int) -> Tensor:
        """Filter ``u`` ``(..., h, w)``, which was subsampled by 2^resolution, subsample it to 2^J, take the edge off.

        The filter is separable: two small matrices do it.
        """
        rows, columns = (self._averages(factor, resolution) for factor in self.phi)
        return rows @ u @ columns.T

    def _averages(self, phi: Tensor, resolution: int) -> Tensor:
        """What filtering and subsampling do to a line, ``(places, len(line))``."""
        cut, step = _cut(phi, resolution, 0), 2 ** (len(self.psi) - resolution)
        filtered = ifft(cut[:, None] * fft(torch.eye(len(cut)), dim=0), dim=0).real
        return filtered[step:-step:step].contiguous()


@lru_cache(maxsize=4)
def bank(height: int, width: int, scales: int, angles: int) -> Bank:
    """Filters for pictures that are padded to ``height`` and ``width``, multiples of 2^scales."""
    psi = []
    for j in range(scales):
        turned = [(angles // 2 - 1 - k) * math.pi / angles for k in range(angles)]
        each = [morlet(height, width, SIGMA * 2**j, t, XI / 2**j, 4 / angles) for t in turned]
        psi.append(fft2(torch.stack(each)).real.float())
    lines = (gabor(edge, 1, SIGMA * 2 ** (scales - 1), 0.0, 0.0, 1.0).real[:, 0] for edge in (height, width))
    rows, columns = (fft(line / line.sum()).real.float() for line in lines)
    return Bank(tuple(psi), (rows, columns))


def morlet(height: int, width: int, sigma: float, theta: float, xi: float, slant: float) -> Tensor:
    """g(u) (exp(i xi u_theta) - beta), ``(height, width)`` complex128, with the beta that makes its sum zero."""
    wave, envelope = gabor(height, width, sigma, theta, xi, slant), gabor(height, width, sigma, theta, 0.0, slant)
    return wave - wave.sum() / envelope.sum() * envelope


def gabor(height: int, width: int, sigma: float, theta: float, xi: float, slant: float) -> Tensor:
    """g(u) exp(i xi u_theta), ``(height, width)`` complex128, periodic.

    Args:
        height, width: the period, in pixels.
        sigma: of g along ``theta``; across it g has sigma / slant.
        theta: direction of the wave, radians from the axis of rows.
        xi: radians a pixel.
        slant: see ``sigma``.
    """
    y, x = (torch.arange(-COPIES * n, (COPIES + 1) * n, dtype=torch.float64) for n in (height, width))
    along = y[:, None] * math.cos(theta) + x * math.sin(theta)
    across = x * math.cos(theta) - y[:, None] * math.sin(theta)
    envelope = torch.exp(-(along**2 + (slant * across) ** 2) / (2 * sigma**2)) * slant / (2 * math.pi * sigma**2)
    periods = torch.polar(envelope, xi * along).unflatten(0, (-1, height)).unflatten(2, (-1, width))
    return periods.sum((0, 2))


def subsample(spectrum: Tensor, step: int) -> Tensor:
    """Of ``(..., h, w)``: the spectrum of every ``step``-th pixel, by folding frequencies."""
    # Adding slices is several times faster here than a sum over dimensions.
    for dim in (-2, -1):
        parts = spectrum.unflatten(dim, (step, -1)).unbind(dim - 1)
        spectrum = sum(parts[1:], parts[0])
    return spectrum * (1 / step**2)


def _cut(spectrum: Tensor, resolution: int, dim: int) -> Tensor:
    """The lowest frequencies of a filter, for what was subsampled by 2^resolution; the others are taken for zero."""
    edge = spectrum.shape[dim]
    kept, low = edge >> resolution, edge >> resolution + 1
    high = kept - low
    return torch.cat([spectrum.narrow(dim, 0, low), spectrum.narrow(dim, edge - high, high)], dim)
