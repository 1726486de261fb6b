"""Is a reconstruction closer to its own record than to others', and how often would one be that knows nothing?"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from privbench.benchmarks.measures import images

DRAWS = 100
"""Records that the level at chance is a mean over, at least."""
LEAST = 8
"""Sets of unrelated records that it is a mean over, at least."""


def identification(x: Tensor, truth: Tensor, distractors: Tensor, lost: Tensor | None = None) -> dict[str, float]:
    """The rank of the true record among itself and the distractors by MSE to its reconstruction.

    1 is the closest; ties count half, so that a distractor equal to the truth leaves it unidentified.

    Args:
        x, truth: ``(n, ...)``, in the same order.
        distractors: ``(m, ...)``.
        lost: ``(n,)``, records without a reconstruction: they have the last rank.

    Returns:
        ``identification_rank`` (median, from 1 to m + 1) and ``identified`` (share with rank 1).
    """
    ranks = _ranks(images.mse(x, truth), torch.stack([images.mse(distractors, found[None]) for found in x]))
    if lost is not None:
        ranks[lost] = len(distractors) + 1.0
    return _values(ranks)


def chance(truth: Tensor, distractors: Tensor, strangers: Tensor, count: int) -> dict[str, float]:
    """:func:`identification` of what knows nothing: ``count`` unrelated records in the reconstructions' place.

    Of one reconstruction and one record the true one has any rank alike: the median is ``m / 2 + 1``, and 1 has
    probability ``1 / (m + 1)``. Where there are more of either, reconstructions are matched to the truth before they
    are ranked, and the nearest of many unrelated records is often nearer to the truth than to anybody else. So the
    same is done with sets of consecutive ``strangers``; nothing is random here.

    Args:
        truth: ``(n, ...)``.
        distractors: ``(m, ...)``, at least one.
        strangers: ``(k, ...)``, further records, in a random order. Where there are fewer than ``count``, distractors
            stand in too, each left out of its own ranking; of both together there may still be fewer.
        count: how many reconstructions there are.

    Returns:
        ``identification_rank_chance`` and ``identified_chance``, means over the sets; nothing where nobody can stand
        in.
    """
    n, m = len(truth), len(distractors)
    if n == count == 1:
        return {"identification_rank_chance": m / 2 + 1, "identified_chance": 1 / (m + 1)}
    own = len(strangers) < count and m > 1
    pool = torch.cat([strangers, distractors]) if own else strangers
    if not len(pool):
        return {}
    near, away = _squares(truth, pool).numpy(), _squares(pool, distractors)
    if own:
        away[len(strangers) + torch.arange(m), torch.arange(m)] = torch.nan
    ranks = []
    for first in np.unique(np.linspace(0, len(pool), max(LEAST, -(-DRAWS // n)), endpoint=False, dtype=int)):
        drawn = (first + np.arange(min(count, len(pool)))) % len(pool)
        j, i = linear_sum_assignment(near[:, drawn])
        ranks.append(np.full(n, m + 1.0))
        ranks[-1][j] = _ranks(torch.as_tensor(near[j, drawn[i]]), away[drawn[i]])
    found = [_values(torch.as_tensor(r)) for r in ranks]
    return {f"{name}_chance": sum(f[name] for f in found) / len(found) for name in found[0]}


def _ranks(own: Tensor, away: Tensor) -> Tensor:
    """Ranks ``(n,)`` of distances ``(n,)`` among those of others ``(n, m)``; a NaN stands for the mean of its row."""
    closer = (away < own[:, None]).double() + (away == own[:, None]).double() / 2
    return 1 + closer.sum(1) * away.shape[1] / (~away.isnan()).sum(1)


def _values(ranks: Tensor) -> dict[str, float]:
    return {"identification_rank": float(ranks.quantile(0.5)), "identified": float((ranks == 1).double().mean())}


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances ``(n, m)``. Equal pairs have equal ones: a table's records may well be as far as each other."""
    rows, columns = a.flatten(1), b.flatten(1).to(a)
    return torch.cdist(rows, columns, compute_mode="donot_use_mm_for_euclid_dist").square()
