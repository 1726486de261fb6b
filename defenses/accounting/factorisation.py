"""Noise correlated over rounds: banded matrix factorisation of the prefix sum (Choquette-Choo et al. 2023, DP-FTRL)."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Banded:
    """Lower triangular Toeplitz C with ``bands`` diagonals, whose inverse correlates the rounds' noise.

    A model is the prefix sum A of the rounds' updates x. Releasing ``A x + A C^-1 z`` is post-processing of
    ``C x + z``: where a client takes part at most once in any ``bands`` rounds, the columns of C that it touches share
    no row, and k participations cost what k Gaussian mechanisms do, since no column is longer than 1. Of all such
    coefficients these have the least mean squared error over the models (banded Toeplitz, McKenna 2024).

    Args:
        coefficients: first column of C from the diagonal on, of length 1.
    """

    coefficients: tuple[float, ...]

    def next(self, fresh: Tensor, last: list[Tensor]) -> Tensor:
        """This round's noise, a row of ``C^-1 z``.

        Args:
            fresh: independent noise, ``(d,)``.
            last: the rounds' noise before, newest first; no more than ``bands - 1`` of them count.
        """
        first, *others = self.coefficients
        noise = fresh.clone()
        for c, before in zip(others, last, strict=False):
            noise.sub_(before, alpha=c)
        return noise.div_(first)

    def spread(self, round: int) -> float:
        """Standard deviation of round ``round``'s noise (from 1) over that of the independent noise it is made of."""
        return float(_inverse(torch.tensor(self.coefficients, dtype=torch.float64), round).square().sum().sqrt())

    def error(self, rounds: int) -> float:
        """Root mean squared error of the models after 1 to ``rounds`` rounds, over the independent noise's deviation.

        Without correlation it is ``sqrt((rounds + 1) / 2)``.
        """
        return math.sqrt(float(_error(torch.tensor(self.coefficients, dtype=torch.float64), rounds)))


@lru_cache
def banded(bands: int, rounds: int) -> Banded:
    """The best C of so many bands, at most ``rounds``, for a run of so many rounds."""
    bands = min(bands, rounds)
    # Of the optimal factorisation without bands, C is the square root of A (Fichtenberger et al. 2023): a start.
    root = [1.0]
    for j in range(1, bands):
        root.append(root[-1] * (2 * j - 1) / (2 * j))
    free = torch.tensor(root[1:], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, dtype=torch.float64)

    def loss() -> Tensor:
        c = torch.cat([one, free])
        return _error(c / c.norm(), rounds).log()

    if bands > 1:
        optimizer = torch.optim.LBFGS([free], max_iter=200, tolerance_change=1e-12, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = loss()
            value.backward()
            return value

        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    c = torch.cat([one, free.detach()])
    return Banded(tuple((c / c.norm()).tolist()))


def _inverse(c: Tensor, rounds: int) -> Tensor:
    """First column of ``C^-1``, ``(rounds,)``."""
    index = torch.arange(rounds)[:, None] - torch.arange(rounds)[None, :]
    matrix = torch.where((index >= 0) & (index < len(c)), c[index.clamp(0, len(c) - 1)], 0.0)
    unit = torch.zeros(rounds, 1, dtype=c.dtype)
    unit[0] = 1.0
    return torch.linalg.solve_triangular(matrix, unit, upper=False).squeeze(1)


def _error(c: Tensor, rounds: int) -> Tensor:
    """Mean over models of the squared length of the row of ``A C^-1``."""
    rows = _inverse(c, rounds).cumsum(0).square()
    return (rows * torch.arange(rounds, 0, -1)).sum() / rounds
