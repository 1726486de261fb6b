"""Where a recursion starts: the last layer's input, its gradient in the logits, and the label."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from privbench.attacks.leakage.attack import AttackFailed
from privbench.attacks.leakage.chain import Step
from privbench.attacks.leakage.constraints import Solved, linear_input
from privbench.benchmarks.federation.view import Public

MOST = 4
"""Starts that are tried at most where several explain the last layer's gradient."""

AGREED = 1e-3
"""Relative misfit of ``dL/dz`` up to which a start explains the last layer's gradient."""

GRID, ZOOMS = 400, 12


@dataclass(frozen=True)
class Start:
    """The last layer of one record, solved.

    Args:
        solved: its input, ``(n,)``.
        k: ``dL/dz``, ``(C,)``.
        label: scalar int64.
    """

    solved: Solved
    k: Tensor
    label: Tensor


class _Logits(nn.Module):
    """A model whose output is given."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


def slopes(public: Public, logits: Tensor, labels: Tensor) -> Tensor:
    """``dL/dz`` of single records, ``(m, C)``, at logits ``(m, C)`` and labels ``(m,)``."""
    given = logits.detach().requires_grad_()
    x = torch.zeros(len(logits), *public.shape, dtype=logits.dtype, device=logits.device)
    value = public.loss(_Logits(given), (x, labels)) * len(logits)
    return torch.autograd.grad(value, given)[0]


def starts(public: Public, last: Step, gradient: dict[str, Tensor]) -> list[Start]:
    """What the last layer's gradient may stand for, the likeliest first, at most :data:`MOST`.

    With a bias, ``dL/db`` is ``dL/dz``, whatever the loss, and there is one. Without, ``dL/dW = k x^T`` has rank one
    and leaves a factor between k and x open. k is a known function of ``z = W x`` and the label, which determines it,
    up to a second solution with two classes (as Zhu and Blaschko 2021 found for one unit).

    Raises:
        AttackFailed: if there is none.
    """
    weight = gradient[f"{last.name}.weight" if last.name else "weight"]
    bias = gradient.get(f"{last.name}.bias" if last.name else "bias")
    layer = last.module
    assert isinstance(layer, nn.Linear)
    if bias is not None:
        solved = linear_input(last.name, weight, bias)
        classes = torch.arange(public.classes, device=bias.device)
        k = slopes(public, layer(solved.x).expand(len(classes), -1), classes)
        return [Start(solved, bias, torch.cosine_similarity(k, bias[None], dim=1).argmax())]
    found = _scales(public, layer, weight)
    if not found:
        raise AttackFailed(
            f"no input of the last layer, {last.name!r}, which has no bias, explains its gradient: it isn't of one"
            " record and one step without clipping and noise"
        )
    return [Start(linear_input(last.name, weight, k), k, label) for k, label in found]


def _scales(public: Public, layer: nn.Linear, weight: Tensor) -> list[tuple[Tensor, Tensor]]:
    """``k`` and label of each scale t with ``dL/dz(t W v, y) = (s / t) u``, for ``dL/dW = s u v^T``."""
    left, singular, right = torch.linalg.svd(weight, full_matrices=False)
    u, v, s = left[:, 0], right[0], singular[0]
    classes = torch.arange(public.classes, device=weight.device)

    def misfit(t: Tensor, label: Tensor) -> Tensor:
        """Of each of t ``(m,)`` with its label ``(m,)``."""
        z = t[:, None] * (layer.weight @ v)
        k = slopes(public, z if layer.bias is None else z + layer.bias, label)
        expected = (s / t)[:, None] * u
        return (k - expected).norm(dim=1) / expected.norm(dim=1)

    positive = torch.logspace(-4, 6, GRID, dtype=weight.dtype, device=weight.device)
    hits: list[tuple[float, Tensor, Tensor]] = []
    for label in classes:
        for grid in (positive, -positive):
            values = misfit(grid, label.expand(len(grid)))
            inner = (values[1:-1] <= values[:-2]) & (values[1:-1] <= values[2:])
            for i in (torch.nonzero(inner).flatten() + 1).tolist():
                t, value = _zoom(misfit, label, grid[i - 1], grid[i + 1])
                if value < AGREED:
                    hits.append((value, (s / t) * u, label))
    return [(k, label) for _, k, label in sorted(hits, key=lambda hit: hit[0])[:MOST]]


def _zoom(misfit, label: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, float]:
    for _ in range(ZOOMS):
        grid = torch.lerp(low, high, torch.linspace(0, 1, 33, dtype=low.dtype, device=low.device))
        values = misfit(grid, label.expand(len(grid)))
        i = int(values.argmin())
        low, high = grid[max(0, i - 1)], grid[min(len(grid) - 1, i + 1)]
    return grid[i], float(values[i])
