"""The scattering transform: fixed features of pictures, for a small model on top (Bruna and Mallat 2013)."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.fft import fft2, ifft2
from torch.nn import functional as F

from privbench.benchmarks.build import require
from privbench.benchmarks.tasks.features.morlet import Bank, bank, subsample
from privbench.benchmarks.tasks.task import Data, Spec, Split

PIXELS = 2**17
"""Pixels transformed at once; it bounds memory to some 200 MB and changes a coefficient in its last bits at most."""


@dataclass(frozen=True)
class Scattering:
    """Scattering coefficients up to order 2: x, |x * psi_1| and ||x * psi_1| * psi_2|, averaged over 2^scales pixels.

    Filters, padding and the order of the channels are those of kymatio 0.3 (Andreux et al. 2020), which Tramer and
    Boneh 2021 use: with 2 scales and 8 angles, 1x28x28 becomes 81x7x7 and 3x32x32 becomes 243x8x8. Raw pixels in
    [0, 1] are transformed, each picture by itself: no statistic of the training records enters.

    Args:
        scales: J; a picture has more than 2^J pixels along each edge, and a coefficient of each path for 2^J of them.
        angles: L, in [0, pi).
    """

    scales: int = 2
    angles: int = 8

    def __post_init__(self) -> None:
        require(1 <= self.scales <= 8, "scales", self.scales, "from 1 to 8")
        require(1 <= self.angles <= 64, "angles", self.angles, "from 1 to 64")

    def spec(self, spec: Spec) -> Spec:
        """What is public about the coefficients of such pictures.

        Raises:
            ConfigError: if inputs aren't pictures, or are too small.
        """
        fits = spec.domain == "image" and min(spec.shape[1:]) > 2**self.scales
        hint = f"null: {spec.name} ({spec.domain} of {spec.shape}) has no pictures of more than {2**self.scales} pixels"
        require(fits, "task.features", type(self).__name__, hint)
        paths = 1 + self.scales * self.angles + self.angles**2 * self.scales * (self.scales - 1) // 2
        shape = (paths * spec.shape[0], *(edge // 2**self.scales for edge in spec.shape[1:]))
        mean, std = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
        return Spec(spec.name, shape, spec.classes, mean, std, "feature map", spec.group)

    def apply(self, data: Data) -> Data:
        """The same records with coefficients for inputs.

        Raises:
            ConfigError: as :meth:`spec`.
        """
        made = self.spec(data.spec)
        return Data(self._split(data.train, data.spec, made), self._split(data.test, data.spec, made), made)

    def _split(self, split: Split, spec: Spec, made: Spec) -> Split:
        x = torch.empty(len(split), *made.shape)
        step = max(1, PIXELS // prod(spec.shape))
        for start in range(0, len(split), step):
            x[start : start + step] = self.transform(split.x[start : start + step] * spec.std + spec.mean)
        return Split(x, split.y, split.group)

    def transform(self, x: Tensor) -> Tensor:
        """``(n, c, h, w)`` to ``(n, c * paths, h // 2^J, w // 2^J)``, float32; the paths of a channel together.

        Their order: order 0; order 1 by scale and angle; order 2 by the first scale and angle, then the second ones.
        """
        (top, bottom), (left, right) = (_padding(edge, self.scales) for edge in x.shape[2:])
        padded = F.pad(x, (left, right, top, bottom), mode="reflect").flatten(0, 1)
        filters = bank(*padded.shape[1:], self.scales, self.angles)
        first, second = self._moduli(fft2(padded)[:, None], filters)
        paths = torch.cat([filters.average(padded[:, None], 0), *first, *second], 1)
        return paths.reshape(len(x), -1, *paths.shape[2:])

    def _moduli(self, spectrum: Tensor, filters: Bank) -> tuple[list[Tensor], list[Tensor]]:
        """Orders 1 and 2 of pictures with a ``spectrum`` ``(n, 1, ...)``: by the first scale, each ``(n, paths, ...)``.

        The second wavelet is the coarser one: |x * psi| has little energy at frequencies above psi's.
        """
        first, second = [], []
        for j in range(self.scales):
            modulus = ifft2(subsample(spectrum * filters.wavelets(j, 0), 2**j)).abs()
            first.append(filters.average(modulus, j))
            again, parts = fft2(modulus)[:, :, None], []
            for coarser in range(j + 1, self.scales):
                product = subsample(again * filters.wavelets(coarser, j), 2 ** (coarser - j))
                parts.append(filters.average(ifft2(product).abs(), coarser))
            second += [torch.cat(parts, 2).flatten(1, 2)] if parts else []
        return first, second


def _padding(edge: int, scales: int) -> tuple[int, int]:
    """Before and after: up to a multiple of 2^scales that leaves about 2^scales on each side."""
    missing = ((edge >> scales) + 2 << scales) - edge
    return missing // 2, missing - missing // 2
