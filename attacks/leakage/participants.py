"""Who took part in which round, from released aggregates and counts alone (Lam et al., ICML 2021, section 4).

With ``G = P U`` (T rounds, n clients, d parameters) every column of P lies in the column space of G. A client's column
is the 0/1 vector in that space with the client's known counts, such as device analytics publish them.
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp


def participations(
    sums: np.ndarray, blocks: Sequence[Sequence[int]], counts: Sequence[int], tolerance: float = 1e-6
) -> np.ndarray | None:
    """In which rounds one client took part.

    The binary program of the paper with an exact null space: ``x`` in {0, 1}^T, ``N x = 0`` for the rows N orthogonal
    to the columns of ``sums``, ``sum(x[block]) = count`` for each block. It presumes updates that don't change between
    rounds, and finds *a* column: with few counts another client's may fit as well.

    Args:
        sums: ``(T, d)``, summed updates of each round, or their means where all cohorts have one size.
        blocks: indices of rounds over which the client's participations were counted.
        counts: how many they were, by block.
        tolerance: singular values below this share of the largest count as zero, and ``|N x|`` may be as large.

    Returns:
        ``(T,)`` of 0 and 1, ``None`` where no column fits.

    Raises:
        ValueError: if blocks and counts differ in number.
    """
    if len(blocks) != len(counts):
        raise ValueError(f"{len(blocks)} blocks, but {len(counts)} counts")
    rounds = len(sums)
    left, singular, _ = np.linalg.svd(sums, full_matrices=True)
    rank = int((singular > tolerance * singular.max(initial=0.0)).sum())
    null = left[:, rank:].T
    members = np.zeros((len(blocks), rounds))
    for row, block in zip(members, blocks, strict=True):
        row[list(block)] = 1
    constraints = [LinearConstraint(m, c, c) for m, c in zip(members, counts, strict=True)]
    if len(null):
        slack = tolerance * np.sqrt(rounds)
        constraints.append(LinearConstraint(null, -slack, slack))
    found = milp(np.zeros(rounds), integrality=np.ones(rounds), bounds=Bounds(0, 1), constraints=constraints)
    return np.rint(found.x) if found.success else None
