"""Book-keeping: one forward and one backward pass for a whole batch (Bu et al. 2023, "Differentially private
optimization on large model at small cost", after the ghost norm of Goodfellow 2015 and Li et al. 2022)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from privbench.defenses.local.per_sample.engine import Loss, Units, Unsupported, factors, trainable
from privbench.defenses.local.per_sample.layers import Layer, layer


class BookKeeping:
    """Keeps each layer's inputs and its outputs' gradients; from them come all units' norms, then the clipped sum.

    Nothing is differentiated with respect to weights in the backward pass, and no unit's gradient is ever whole in
    memory. Every trainable parameter must belong to a layer that is called once, with one tensor.
    """

    name: ClassVar[str] = "book_keeping"

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self.model, self.loss = model, loss
        self.parameters = list(trainable(model).values())
        self.owners = [m for m in model.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
        for module in self.owners:
            if any(any(p.requires_grad for p in child.parameters()) for child in module.children()):
                raise Unsupported(f"{type(module).__name__} has parameters of its own and in parts of it")

    def add(self, units: Units, clip: float) -> Tensor:
        layers = self._run(units)
        squares = torch.stack([one.squared_norms() for one in layers]).sum(0)
        # The batch's loss is a mean over all of its records, a unit's is one over its own.
        norms = squares.sqrt() * len(units)
        finite = torch.isfinite(norms)
        if not bool(finite.all()):
            # Zero times infinity isn't zero: units that break off are left out of the batch instead.
            if bool(finite.any()):
                self.add(units.take(finite.nonzero().squeeze(1)), clip)
            return norms
        factor = factors(norms, clip) * len(units)
        for one in layers:
            one.add(factor)
        return norms

    def _run(self, units: Units) -> list[Layer]:
        """Each layer's inputs and its outputs' gradients."""
        calls: list[_Call] = []
        with _listening(self.owners, self.parameters, calls), torch.enable_grad():
            loss = self.loss(self.model, (units.x, units.y))
            if not calls:
                raise Unsupported("no layer with parameters was called")
            gradients = torch.autograd.grad(loss, [call.edge for call in calls], allow_unused=True)
        self._check(calls)
        made = []
        for call, gradient in zip(calls, gradients, strict=True):
            if gradient is not None:
                made.append(layer(call.module, call.input, gradient, units.views))
        return made

    def _check(self, calls: "list[_Call]") -> None:
        seen: set[int] = set()
        for call in calls:
            if call.input._version != call.version:
                raise Unsupported(f"the input of {type(call.module).__name__} is changed in place")
            own = {id(p) for p in call.module.parameters(recurse=False) if p.requires_grad}
            if seen & own:
                raise Unsupported(f"{type(call.module).__name__}'s parameters are used more than once")
            seen |= own


class _Call:
    """One call of a layer."""

    def __init__(self, module: nn.Module, input: Tensor, edge: Any) -> None:
        self.module, self.input, self.edge = module, input, edge
        self.version = input._version


class _Seam(torch.autograd.Function):
    """The output of the first layer, from which the backward pass needs to go no further down."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor) -> Tensor:
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        return None, None


@contextmanager
def _listening(owners: list[nn.Module], parameters: list[nn.Parameter], calls: list[_Call]) -> Iterator[None]:
    """Calls of ``owners`` are noted, and their parameters aren't differentiated."""
    anchor = torch.zeros((), requires_grad=True)

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor:
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not isinstance(output, Tensor):
            raise Unsupported(f"{type(module).__name__} doesn't make one tensor of one")
        if not output.requires_grad:
            output = _Seam.apply(output, anchor)
        assert isinstance(output, Tensor)
        calls.append(_Call(module, inputs[0].detach(), get_gradient_edge(output)))
        return output

    with ExitStack() as stack:
        for module in owners:
            stack.enter_context(_removed(module.register_forward_hook(hook)))
        for p in parameters:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in parameters:
                p.requires_grad_(True)


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
