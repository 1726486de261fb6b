"""R-GAP: Recursive Gradient Attack on Privacy (Zhu and Blaschko, ICLR 2021)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from privbench.attacks.leakage.activations import undo
from privbench.attacks.leakage.attack import AttackFailed, Reconstruction, check, choose
from privbench.attacks.leakage.chain import Step, chain
from privbench.attacks.leakage.constraints import Solved, convolution_input, linear_input
from privbench.attacks.leakage.first_layer import finish, trained_parts
from privbench.attacks.leakage.head import Start, starts
from privbench.attacks.leakage.observe import Observation
from privbench.benchmarks.build import require
from privbench.benchmarks.federation.view import View

AGREED = 1e-3
"""Residual up to which a layer's constraints agree."""


@dataclass(frozen=True)
class RGAP:
    """One record, layer by layer from the last: ``x_i`` from ``W_i x_i = z_i`` and ``dL/dW_i = k_i x_i^T``.

    ``z_i`` follows from the layer after it by undoing the activation, ``k_i = dL/dz_i`` by the chain rule with the
    known weights (section 3). In a convolution one entry of the gradient is a sum over places; both kinds of
    constraints are linear in ``x_i`` and are stacked (:mod:`~privbench.attacks.leakage.constraints`). A linear layer's
    gradient alone gives its input; with a bias, ``k_i`` is the bias's gradient itself.

    It wants a chain of ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d`` and activations that can be undone, one record and
    one local step without noise. A ReLU passes on only what it lets through, so that the gradient must determine the
    rest. The last layer starts it (:mod:`~privbench.attacks.leakage.head`): unlike in the paper with any number of
    classes and any loss, and labels are found too.

    Unlike in the paper each constraint is weighted by how well it is known, and everything is float64. How many of
    each layer's unknowns its constraints determine, the paper's rank analysis (section 4) on the layer's real
    constraints, is in the result's ``engine``: where some are undetermined, the input of least norm is taken, and a
    perfect ``gradient_objective`` says nothing.

    Args:
        tolerance: largest relative squared distance of gradients at which a reconstruction stands; beyond it, the
            recursion is told as failed, with the layer at which its constraints first contradicted each other.
        most_unknowns: of a convolution; a system of n takes ``n^3`` operations and ``8 n^2`` bytes several times.
    """

    tolerance: float = 0.1
    most_unknowns: int = 8192

    def __post_init__(self) -> None:
        require(self.tolerance > 0, "tolerance", self.tolerance, "positive")
        require(self.most_unknowns >= 1, "most_unknowns", self.most_unknowns, "at least 1")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"batch_size"})

    def reconstruct(self, view: View, observation: Observation, generator: torch.Generator) -> Reconstruction:
        """See :class:`~privbench.attacks.leakage.attack.Attack`.

        Raises:
            AttackFailed: for several records, for a model that is no chain, with the name of what is in the way, and
                for a reconstruction that contradicts the gradient.
        """
        check(view, observation, self.needs)
        public = view.public
        if observation.records != 1:
            raise AttackFailed(f"the recursion is for a single record, not for {observation.records}")
        steps = chain(public, observation.model)
        self._fits(steps)
        gradient = trained_parts(public.layout, observation.gradient.double())
        found: list[tuple[Reconstruction, list[Solved]]] = []
        for start in starts(public, steps[-1], gradient):
            x, solved = recurse(steps, start, gradient)
            if torch.isfinite(x).all():
                found.append((finish(public, observation, x[None], start.label[None]), solved))
        if not found:
            raise AttackFailed("the recursion ended without finite numbers")
        best, solved = min(found, key=lambda f: f[0].objective)
        if not best.objective <= self.tolerance:
            raise AttackFailed(_broken(solved, best.objective))
        candidates = torch.cat([one.candidates for one, _ in found])
        labels = torch.stack([one.y for one, _ in found])
        objectives = [one.objective for one, _ in found]
        return choose(candidates, labels, objectives, "R-GAP; " + "; ".join(map(str, solved)))

    def _fits(self, steps: tuple[Step, ...]) -> None:
        for step in steps:
            unknowns = torch.Size(step.before).numel()
            if isinstance(step.module, (nn.Conv1d, nn.Conv2d)) and unknowns > self.most_unknowns:
                raise AttackFailed(
                    f"the layer {step.name!r} has {unknowns} unknowns, more than most_unknowns={self.most_unknowns}"
                )


def recurse(steps: tuple[Step, ...], start: Start, gradient: dict[str, Tensor]) -> tuple[Tensor, list[Solved]]:
    """The record ``(n,)`` and each layer's solution, the last layer's first.

    Args:
        steps: of the model, the last one as in ``start``.
        gradient: by the parameter's name, float64.
    """
    last = steps[-1].module
    assert isinstance(last, nn.Linear)
    a, k = start.solved.x, start.k @ last.weight
    trust, solved = torch.full_like(a, 1 / _size(a)), [start.solved]
    for step in reversed(steps[:-1]):
        module = step.module
        if not step.trained:
            a, derivative = undo(module, a)
            k, trust = k * derivative, trust * derivative
            continue
        weight = gradient[f"{step.name}.weight"]
        if isinstance(module, nn.Linear):
            own = gradient.get(f"{step.name}.bias")
            k = k if own is None else own
            one = linear_input(step.name, weight, k)
            back = k @ module.weight
        else:
            assert isinstance(module, (nn.Conv1d, nn.Conv2d))
            z, slopes, sure = (v.view(step.after) for v in (a, k, trust))
            one = convolution_input(step.name, module, step.before, weight, slopes, z, sure)
            back = _back(module, step.before, slopes)
        solved.append(one)
        a, k = one.x, back
        trust = torch.full_like(a, 1 / _size(a))
    return a, solved


def _size(a: Tensor) -> float:
    """Root mean square, in whose unit what is wrong with activations is presumed to be alike."""
    return max(float(a.square().mean().sqrt()), torch.finfo(a.dtype).tiny)


def _back(module: nn.Module, shape: tuple[int, ...], k: Tensor) -> Tensor:
    """``dL/dx`` of a layer from ``dL/dz``, flattened."""
    x = torch.zeros(1, *shape, dtype=k.dtype, device=k.device, requires_grad=True)
    return torch.autograd.grad(module(x), x, k[None])[0].flatten()


def _broken(solved: list[Solved], objective: float) -> str:
    why = f"the gradient at the reconstruction is off by {objective:.1g} of the observed one's square"
    short = next((s for s in solved if s.rank < s.unknowns), None)
    if short is not None:
        return f"{why}; {short}"
    worst = max(solved, key=lambda s: s.residual)
    if worst.residual < AGREED:
        return f"{why}, though each layer's constraints agree: a clip or a scale isn't published"
    return f"{why}; constraints contradict each other most at {worst}: the gradient isn't of one step without noise"
