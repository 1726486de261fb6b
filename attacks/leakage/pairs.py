"""What L-BFGS remembers, for many problems at once, and the directions that follow from it."""

import torch
from torch import Tensor
from torch.linalg import solve_triangular


class Pairs:
    """Steps ``s`` and changes of slope ``y`` of R problems in D dimensions, and ``-H g`` by their inverse Hessians.

    The two-loop recursion (Nocedal and Wright, algorithm 7.4) written out for its coefficients, with the products of
    the pairs kept: four passes over the memory, all of them batched matrix products, instead of two for each pair.

    Args:
        slots: so many events are remembered. An event brings a new pair for some rows, and nothing for the others.
        like: ``(R, D)``, for the type and the device.
    """

    def __init__(self, slots: int, like: Tensor):
        rows, size = like.shape
        self._s, self._y = like.new_zeros(rows, slots, size), like.new_zeros(rows, slots, size)
        # s_i . y_j (of use for i not newer than j) and y_i . y_j. A slot without a pair has 1 on the diagonal of the
        # first and is 0 elsewhere, so that its coefficients are 0.
        self._sy = torch.eye(slots, dtype=torch.float64, device=like.device).repeat(rows, 1, 1)
        self._yy = torch.zeros_like(self._sy)
        self._scale = like.new_ones(rows)
        self._events = 0
        self._new: Tensor | None = None
        self.count = torch.zeros(rows, dtype=torch.int64, device=like.device)
        """Pairs that each row ever had, since it last forgot them."""

    def add(self, rows: Tensor, step: Tensor, change: Tensor, product: Tensor) -> None:
        """A pair for the chosen rows; ``product`` is ``s . y > 0``. :meth:`direction` comes next."""
        slot = self._events % self._s.shape[1]
        self._new = torch.where(rows[:, None], change, 0.0)
        self._s[:, slot], self._y[:, slot] = torch.where(rows[:, None], step, 0.0), self._new
        self._sy[:, slot, slot] = torch.where(rows, product.double(), 1.0)
        squares = change.square().sum(1)
        self._scale = torch.where(rows, product / torch.where(rows, squares, 1.0), self._scale)
        self.count += rows.long()
        self._events += 1

    def forget(self, rows: Tensor) -> None:
        """Everything, for the chosen rows."""
        if not bool(rows.any()):
            return
        self._s[rows], self._y[rows], self._yy[rows] = 0.0, 0.0, 0.0
        if self._new is not None:
            self._new[rows] = 0.0
        self._sy[rows] = torch.eye(self._sy.shape[1], dtype=self._sy.dtype, device=self._sy.device)
        self._scale[rows], self.count[rows] = 1.0, 0

    def direction(self, slope: Tensor) -> Tensor:
        """``-H slope``, ``(R, D)``; the negative slope where there are no pairs."""
        slots = self._s.shape[1]
        used, oldest = min(self._events, slots), self._events % slots if self._events > slots else 0
        if used == 0:
            return -slope
        s, y, scale = self._s[:, :used], self._y[:, :used], self._scale[:, None]
        # The products with the newest change of slope ride along.
        both = torch.stack([slope, slope if self._new is None else self._new], 1)
        (gs, new_s), (gy, new_y) = (torch.bmm(both, v.transpose(1, 2)).double().unbind(1) for v in (s, y))
        if self._new is not None:
            slot, self._new = (self._events - 1) % slots, None
            diagonal = self._sy[:, slot, slot].clone()
            self._sy[:, :used, slot] = new_s
            self._sy[:, slot, slot] = diagonal
            self._yy[:, :used, slot] = self._yy[:, slot, :used] = new_y
        sy, yy = self._sy[:, :used, :used], self._yy[:, :used, :used]
        if oldest:
            sy = sy.roll((-oldest, -oldest), (1, 2))
        gs, gy = gs.roll(-oldest, 1), gy.roll(-oldest, 1)
        alpha = solve_triangular(sy, gs[..., None], upper=True)[..., 0]
        other = gy - torch.bmm(yy, alpha.roll(oldest, 1)[..., None])[..., 0].roll(-oldest, 1)
        right = sy.diagonal(dim1=1, dim2=2) * alpha - scale.double() * other
        delta = solve_triangular(sy.transpose(1, 2), right[..., None], upper=False)[..., 0]
        alpha, delta = (c.roll(oldest, 1).to(slope) for c in (alpha, delta))
        along = slope - torch.bmm(alpha[:, None], y)[:, 0]
        return -(scale * along).add_(torch.bmm(delta[:, None], s)[:, 0])
