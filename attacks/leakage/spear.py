"""SPEAR: exact inversion of small batches (Dimitrov, Baader, Müller and Vechev, NeurIPS 2024)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from privbench.attacks.leakage.attack import AttackFailed, Reconstruction, check
from privbench.attacks.leakage.first_layer import FirstLayer, finish
from privbench.attacks.leakage.observe import Observation
from privbench.benchmarks.build import require
from privbench.benchmarks.federation.view import View

BLOCK = 4096
"""Random submatrices whose null vectors are computed together."""

ZERO = 1e-4
"""Entries of a direction below this share of its largest are zeros, up to rounding of float32."""

EXACT = 1 - 1e-6
"""Agreement of slopes with inputs from which on nothing is exchanged any more."""

SURE = 1 - 1e-4
"""Agreement from which on a record counts as found."""

EXPLAINED = 1e-3
"""What the next layer's weights may leave of a record's slopes, as a share of their length."""

MORE = 4
"""Directions that take part in the exchange, in multiples of the records."""


@dataclass(frozen=True)
class Spear:
    """``dL/dW = S X`` with slopes ``S = (dL/dZ)^T`` ``(H, b)`` and inputs ``X`` ``(b, n)``: rank b, and S is sparse.

    With a low-rank decomposition ``dL/dW = L R`` there is one ``Q`` with ``S = L Q`` and ``X = Q^-1 R``. ReLU closes
    about half of a record's units, so that a direction q in which ``L q`` has many zeros is a column of Q, up to its
    length: it is the null vector of b - 1 rows of L in all of which the record is closed, and such rows are found by
    sampling. Directions are collected until b sparse and independent ones are there; lengths follow from
    ``dL/db = S 1``. Of what more there is, directions are exchanged as long as that raises the agreement of slopes with
    inputs; sampling goes on until they agree.

    Unlike in the paper, agreement is the cosine of slopes with those computed anew from the inputs, not of their signs
    with those of ``W x + b`` alone, and each direction is solved for anew from all of its zeros, which takes rounding
    of float32 down.

    It wants ``nn.Linear`` with a bias on the flattened input, a ReLU after it, more units than records, and one local
    step without noise: up to about 10 records, since the samples that are needed grow as ``2^b / b``.

    With two or three classes slopes of different records are nearly multiples of one another where both are open, so
    that their differences are sparse too. Where logits follow from the ReLU by one linear layer, such directions are
    told from records (not in the paper): where a record is open, its slopes are ``V^T c`` with one ``c`` of a number a
    class, V the layer's weights; those of a difference aren't. In deeper models it can be misled.

    How many records agree by themselves is in the result's ``engine``; where none does, it has failed.

    Args:
        samples: random submatrices at most.
        sparsity: least share of zeros in a column of slopes, beside the b - 1 that any null vector has; ReLU makes
            about 0.5.
    """

    samples: int = 50_000
    sparsity: float = 0.2

    def __post_init__(self) -> None:
        require(self.samples >= 1, "samples", self.samples, "at least 1")
        require(0 < self.sparsity < 1, "sparsity", self.sparsity, "in (0, 1)")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"batch_size"})

    def reconstruct(self, view: View, observation: Observation, generator: torch.Generator) -> Reconstruction:
        """See :class:`~privbench.attacks.leakage.attack.Attack`.

        Raises:
            AttackFailed: without ReLU, with too few units, where sampling doesn't find enough directions, and where
                no record's slopes agree with its input.
        """
        check(view, observation, self.needs)
        layer = FirstLayer.of(view.public, observation.model)
        if not layer.gated:
            raise AttackFailed(f"no ReLU follows the first layer, {layer.name!r}: its slopes aren't sparse")
        weight, bias = layer.part(observation.gradient)
        left, rank = decompose(weight, observation.records)
        if rank == 0:
            raise AttackFailed(f"the weight gradient of the first layer, {layer.name!r}, is zero: no unit is active")
        if rank >= len(left):
            raise AttackFailed(f"a gradient of rank {rank} needs more than the first layer's {len(left)} units")
        solved = None
        for directions in self.directions(left, generator, next_weights(layer)):
            solved = best(layer, left, directions, weight, bias)
            if solved.agreed >= EXACT:
                break
        if solved is None:
            raise AttackFailed(
                f"{self.samples} samples don't find {rank} independent sparse directions: the batch is too large for"
                " this layer, or the gradient isn't of one step without noise"
            )
        sure = int((solved.agreement >= SURE).sum())
        if not sure:
            raise AttackFailed(
                f"the {rank} sparse directions found mislead: no record's slopes agree with its input (cosine"
                f" {float(solved.agreement.max()):.3f} at best), as with few classes and more layers behind"
            )
        engine = f"SPEAR; slopes of {sure} of {rank} records agree with their inputs"
        x, slopes = solved.x, solved.slopes
        found = finish(view.public, observation, x, layer.labels(x, slopes.T))
        if rank == observation.records:
            return replace(found, engine=engine)
        # Records of zero gradient or of one direction leave no trace of their own: the mean stands in for them.
        x = torch.cat([x, x.new_zeros(observation.records - rank, x.shape[1])])
        y = torch.cat([found.y, found.y[:1].expand(observation.records - rank)])
        return replace(finish(view.public, observation, x, y), engine=engine)

    def directions(self, left: Tensor, generator: torch.Generator, following: Tensor | None = None) -> Iterator[Tensor]:
        """Unit vectors q in which ``left @ q`` is sparse, ``(k, b)``, the sparsest first, no two alike.

        The first set is there as soon as b of them are independent; each later one took twice as many samples, and the
        last one all of them.

        Args:
            left: L, ``(H, b)``.
            following: weights from the units to the logits, ``(C, H)``; where they are given, directions that aren't
                a record's slopes are left out.
        """
        units, rank = left.shape
        if rank == 1:
            yield left.new_ones(1, 1)
            return
        found, due = left.new_zeros(0, rank), 0
        for start in range(0, self.samples, BLOCK):
            count = min(BLOCK, self.samples - start)
            rows = torch.rand(count, units, generator=generator).topk(rank - 1, dim=1).indices.to(left.device)
            # The last column of a full QR is orthogonal to all rows of the submatrix.
            q = torch.linalg.qr(left[rows].mT, mode="complete").Q[..., -1]
            zeros = _zeros(q @ left.T).sum(1)
            q = q[zeros >= rank - 1 + self.sparsity * (units - rank + 1)]
            fresh = _refined(left, _distinct(q))
            if following is not None:
                fresh = fresh[_explained(fresh @ left.T, following)]
            found = _distinct(torch.cat([found, fresh]))
            done = start + count
            if _rank(found) == rank and (done >= due or done == self.samples):
                due = 2 * done
                yield found[_zeros(found @ left.T).sum(1).argsort(descending=True)]


@dataclass(frozen=True)
class Solved:
    """Inputs ``(b, n)``, slopes ``(H, b)``, and the cosine of each record's with slopes computed from its input."""

    x: Tensor
    slopes: Tensor
    agreement: Tensor

    @property
    def agreed(self) -> float:
        """Mean agreement."""
        return float(self.agreement.mean())


def next_weights(layer: FirstLayer) -> Tensor | None:
    """Weights of the linear layer that makes logits of the first layer's ReLU, ``(C, H)``; ``None`` without one."""
    if layer.second is None:
        return None
    second = layer.model.get_submodule(layer.second)
    assert isinstance(second, nn.Linear)
    linear = layer.linear
    seed = torch.Generator().manual_seed(0)
    probe = torch.randn(2, *layer.public.shape, generator=seed, dtype=linear.weight.dtype).to(linear.weight.device)
    with torch.no_grad():
        found, expected = layer.model(probe), second(linear(probe.flatten(1)).relu())
    same = found.shape == expected.shape and torch.allclose(found, expected)
    return second.weight.detach() if same else None


def decompose(weight: Tensor, records: int) -> tuple[Tensor, int]:
    """L of ``dL/dW = L R`` with orthonormal columns, ``(H, b)``, and b: the numerical rank, at most ``records``."""
    left, singular, _ = torch.linalg.svd(weight, full_matrices=False)
    rank = min(records, int((singular > 1e-6 * singular[0]).sum()))
    return left[:, :rank], rank


def best(layer: FirstLayer, left: Tensor, directions: Tensor, weight: Tensor, bias: Tensor) -> Solved:
    """What follows from those b directions whose slopes and inputs agree best, as far as single exchanges lead.

    Args:
        directions: ``(k, b)`` of rank b, the sparsest first.
    """
    rank = left.shape[1]
    chosen: list[int] = []
    for i in range(len(directions)):
        if len(chosen) < rank and _rank(directions[[*chosen, i]]) > len(chosen):
            chosen.append(i)
    solved = _solve(layer, left, directions[chosen], weight, bias)
    others = [i for i in range(len(directions)) if i not in chosen][: MORE * rank]
    while solved.agreed < EXACT:
        trials = [[*chosen[:k], other, *chosen[k + 1 :]] for other in others for k in range(len(chosen))]
        trials = [t for t in trials if _rank(directions[t]) == rank]
        results = [_solve(layer, left, directions[t], weight, bias) for t in trials]
        top = max(range(len(trials)), key=lambda i: results[i].agreed, default=None)
        if top is None or results[top].agreed <= solved.agreed:
            break
        others = [i for i in [*others, *chosen] if i not in trials[top]]
        chosen, solved = trials[top], results[top]
    return solved


def _solve(layer: FirstLayer, left: Tensor, directions: Tensor, weight: Tensor, bias: Tensor) -> Solved:
    columns = left @ directions.T
    # dL/db is the sum of the records' slopes, which gives each direction its length and sign.
    lengths = torch.linalg.lstsq(columns, bias[:, None]).solution.squeeze(1)
    slopes = columns * torch.where(lengths == 0, 1.0, lengths)
    x = torch.linalg.lstsq(slopes, weight).solution
    anew = torch.cat([layer.by_class(part) for part in layer.blocks(x)])
    agreed = torch.cosine_similarity(anew, slopes.T[:, None], dim=-1).amax(1)
    return Solved(x.detach(), slopes, agreed)


def _zeros(columns: Tensor) -> Tensor:
    """Where rows of ``columns`` ``(k, H)`` vanish."""
    size = columns.abs()
    return size < ZERO * size.amax(1, keepdim=True)


def _explained(columns: Tensor, following: Tensor) -> Tensor:
    """Which of ``columns`` ``(k, H)`` are, where they aren't 0, a combination of the rows of ``following`` ``(C, H)``.

    Of so few open units that any column is one, nothing is said.
    """
    fine = [True] * len(columns)
    for i, (column, closed) in enumerate(zip(columns, _zeros(columns), strict=True)):
        own, rows = column[~closed, None], following[:, ~closed].T
        if len(own) > rows.shape[1]:
            left = own - rows @ torch.linalg.lstsq(rows, own).solution
            fine[i] = bool(left.norm() <= EXPLAINED * own.norm())
    return torch.tensor(fine, dtype=torch.bool, device=columns.device)


def _distinct(directions: Tensor) -> Tensor:
    """Of unit vectors ``(k, b)`` that are alike, up to their sign, the first."""
    alike = (directions @ directions.T).abs() > 1 - 1e-4
    return directions[~alike.tril(-1).any(1)]


def _refined(left: Tensor, directions: Tensor) -> Tensor:
    """For each of ``(k, b)`` the direction that is nearest to zero on all of the units where ``left @ q`` vanishes."""
    closed = _zeros(directions @ left.T).to(left)
    # The least eigenvector of the sum of outer products over closed units.
    return torch.linalg.eigh(torch.einsum("kh,hb,hc->kbc", closed, left, left)).eigenvectors[..., 0]


def _rank(directions: Tensor) -> int:
    return int(torch.linalg.matrix_rank(directions, rtol=1e-3)) if len(directions) else 0
