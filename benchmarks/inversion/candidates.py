"""Guesses at what a dump was computed from, for the diagnosis: labels and standardisations."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call

from privbench.benchmarks.inversion.case import Case

MOST = 512
"""Records times classes up to which labels are sought: so many backward passes through the last layer."""

# Mean and standard deviation that training scripts use, by number of channels.
_COMMON = {
    1: {"MNIST's": ((0.1307,), (0.3081,)), "0.5 and 0.5": ((0.5,), (0.5,))},
    3: {
        "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        "0.5 and 0.5": ((0.5,) * 3, (0.5,) * 3),
    },
}


def common_standardisations(x: Tensor) -> Iterator[tuple[Tensor, str]]:
    """Images ``(B, C, H, W)`` as training scripts would standardise them, and a sentence that says so."""
    for name, (mean, std) in (_COMMON.get(x.shape[1], {}) if x.ndim == 4 else {}).items():
        m, s = (torch.tensor(v).view(1, -1, 1, 1) for v in (mean, std))
        shown = f"mean {list(mean)}, std {list(std)}"
        yield (x - m) / s, f"the inputs were standardised with {name} statistics ({shown}); x isn't"
        yield (x / 255 - m) / s, f"the inputs were divided by 255 and standardised with {name} statistics ({shown})"


def fitting_labels(case: Case, x: Tensor, y: Tensor, model: nn.Module) -> Tensor | None:
    """Labels ``(B,)`` int64 other than ``y`` with which the dump's last tensors are best explained.

    Gradients of cross entropy and squared error are affine in soft labels, so that those are a least-squares problem
    in the gradient of the last two trained tensors; each record's largest is taken. Whether the whole gradient fits
    then is for the caller to find out.

    Returns:
        ``None`` where there are too many, the tensors' order isn't known, or the loss takes no soft labels.
    """
    public, batch = case.public, len(x)
    vector = case.dump.vector()
    if vector is None or case.steps > 1 or public.classes < 2 or batch * public.classes > MOST:
        return None
    names = public.layout.names[: public.layout.parameters]
    # Cloned: in training mode a forward pass writes BatchNorm's statistics.
    state = {n: t.detach().clone() for n, t in public.layout.views(case.sent).items()}
    tail = {n: state[n].clone().requires_grad_() for n in names[-2:]}
    size = sum(t.numel() for t in tail.values())
    try:
        output = functional_call(model, {**state, **tail}, (x,))

        def slope(soft: Tensor) -> Tensor:
            value = case.loss.function(output, soft)
            parts = torch.autograd.grad(value, list(tail.values()), retain_graph=True, materialize_grads=True)
            return torch.cat([p.reshape(-1) for p in parts])

        zero = torch.zeros(batch, public.classes)
        origin = slope(zero)
        columns = []
        for k in range(zero.numel()):
            one = zero.clone()
            one.view(-1)[k] = 1
            columns.append(slope(one) - origin)
    except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError):
        return None
    matrix, seen = torch.stack(columns, 1).double(), (vector[-size:] * case.unit - origin).double()
    if case.known.pruned:
        kept = vector[-size:] != 0
        matrix, seen = matrix[kept], seen[kept]
    # Each record's labels sum to one, which ties down what the gradient leaves open.
    ties = torch.eye(batch).repeat_interleave(public.classes, 1).double() * matrix.norm()
    target = torch.cat([seen, matrix.norm() * torch.ones(batch).double()])
    soft = torch.linalg.lstsq(torch.cat([matrix, ties]), target[:, None], driver="gelsd").solution
    found = soft.view(batch, public.classes).argmax(1)
    return None if torch.equal(found, y) else found
