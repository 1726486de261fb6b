"""Distances among updates. What a selecting rule needs of an ``(n, d)`` matrix is in ``n`` by ``n`` numbers."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import lru_cache

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

CHUNK = 1 << 14
"""Columns worked on at once: a hundred rows of them fit the second-level cache."""


def squared_distances(x: Tensor, *others: Tensor) -> Tensor:
    """Squared distances among rows, without a copy of the matrix.

    Distances come out of scalar products, whose rounding would drown updates that differ little beside their length.
    They are taken from the row of median norm, so that what is rounded is about as long as the distances; far
    outliers can't move that row.

    Args:
        x: ``(n, d)``, finite, any floating dtype.
        others: further rows, ``(d,)`` each, which come behind those of ``x``.

    Returns:
        ``(n + len(others),)`` squared, float64, zero on the diagonal, symmetric.
    """
    n = len(x) + len(others)
    lengths = torch.cat([norms(x), *(norms(o[None]) for o in others)])
    pivot = int(lengths.argsort()[(n - 1) // 2])
    origin = x[pivot] if pivot < len(x) else others[pivot - len(x)]
    gram = torch.zeros(n, n, dtype=torch.float64, device=x.device)
    moved = torch.empty(n, min(CHUNK, x.shape[1]), dtype=working(x[:0]).dtype, device=x.device)
    with one_thread():
        for part in chunks(x.shape[1]):
            rows = moved[:, : part.stop - part.start]
            torch.sub(x[:, part], origin[part], out=rows[: len(x)])
            for place, other in enumerate(others, len(x)):
                torch.sub(other[part], origin[part], out=rows[place])
            gram += products(rows)
    lengths = gram.diagonal()
    squared = (lengths[:, None] + lengths - 2 * gram).clamp_(min=0)
    squared.fill_diagonal_(0)
    return (squared + squared.T) / 2


def enough(n: int, f: int, least: int) -> None:
    """Refuse ``n`` updates that are too few for a rule told of ``f`` attackers, which takes ``least``.

    Raises:
        ValueError: also for a negative ``f``.
    """
    if f < 0:
        raise ValueError(f"f={f}: a number of attackers from 0")
    if n < least:
        raise ValueError(f"f={f}: takes at least {least} updates, of which there are {n}")


def norms(x: Tensor) -> Tensor:
    """L2 norms of the rows of ``x`` (n, d), float64; one whose square a float32 can't hold may be infinite."""
    single = torch.float32 if x.element_size() < 4 else x.dtype
    return torch.linalg.vector_norm(x, dim=1, dtype=single).to(torch.float64)


def mixed_distances(squared: Tensor, mixing: Tensor) -> Tensor:
    """Squared distances among ``mixing @ x`` from those among the rows of ``x``.

    Of points ``a`` and ``b`` whose weights sum to one, ``||a - b||^2 = -(a - b)^T D (a - b) / 2``.

    Args:
        squared: D, ``(n, n)`` float64.
        mixing: ``(k, n)``, each row summing to one.

    Returns:
        ``(k, k)`` float64.
    """
    m = mixing.to(squared)
    product = m @ squared @ m.T
    own = product.diagonal()
    mixed = (product - (own[:, None] + own) / 2).clamp_(min=0)
    mixed.fill_diagonal_(0)
    return (mixed + mixed.T) / 2


def to_point(squared: Tensor, weights: Tensor) -> Tensor:
    """Squared distances ``(n,)`` of all rows to the point ``weights @ x``; ``weights`` (n,) sum to one."""
    across = squared @ weights
    return (across - weights @ across / 2).clamp_(min=0)


def weighted(weights: Tensor, x: Tensor) -> Tensor:
    """``weights @ x``, ``(d,)`` in the dtype of ``x``, which is finite."""
    out = torch.empty(x.shape[1], dtype=x.dtype, device=x.device)
    for part in chunks(x.shape[1]):
        rows = working(x[:, part])
        out[part] = weights.to(rows) @ rows
    return out


def chunks(d: int) -> Iterator[slice]:
    """Slices that cover ``d`` columns."""
    for start in range(0, d, CHUNK):
        yield slice(start, min(d, start + CHUNK))


def working(x: Tensor) -> Tensor:
    """``x`` in the precision that sums are made in: half precision is summed in single."""
    return x.float() if x.element_size() < 4 else x


def one_thread() -> AbstractContextManager[object]:
    """For :func:`products`: the number of threads changes the order of summation, and torch's isn't NumPy's."""
    return _blas().limit(limits=1, user_api="blas")


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    """The libraries that this process has loaded."""
    return ThreadpoolController()


def products(rows: Tensor) -> Tensor:
    """``rows @ rows.T``, ``(n, n)``; NumPy's BLAS call makes one half and copies it to the other, torch's doesn't."""
    if rows.device.type != "cpu":
        return rows @ rows.T
    array = rows.numpy()
    return torch.from_numpy(array @ array.T)
