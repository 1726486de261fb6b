"""The gradient that a client would send for given records, as a function of these records."""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from privbench.attacks.leakage.rows import NoRows, PerRow, astray, gradients
from privbench.benchmarks.federation.view import Public

Tensors = dict[str, Tensor]


class _Loss(nn.Module):
    """The task's loss as a module, so that a functional call reaches the parameters inside."""

    def __init__(self, public: Public):
        super().__init__()
        self.model = _stateless(copy.deepcopy(public.model))
        self.loss = public.loss

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(self.model, (x, y))


class ClientGradient:
    """``(x, y) -> gradient`` of the public loss at a model, twice differentiable.

    BatchNorm is used in the mode of ``public.model``: in training mode with the statistics of the batch that is
    reconstructed, in evaluation mode with those in ``vector``. Dropout is switched off: its masks are not known.

    Args:
        public: architecture, loss and layout.
        vector: the model, ``(layout.size,)``.
    """

    def __init__(self, public: Public, vector: Tensor):
        self._module = _Loss(public)
        own = {**dict(self._module.model.named_parameters()), **dict(self._module.model.named_buffers())}
        state = {
            name: (value if own[name].is_floating_point() else value.round().to(own[name].dtype)).detach().clone()
            for name, value in public.layout.views(vector).items()
            if name in own
        }
        names = public.layout.names[: public.layout.parameters]
        self.parameters = {name: state[name].requires_grad_() for name in names}
        self.buffers = {name: value for name, value in state.items() if name not in self.parameters}

    def _tensors(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"model.{name}": value for name, value in {**parameters, **self.buffers}.items()}

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Shape ``(layout.trainable,)``; for plain automatic differentiation."""
        return flat(self.at(self.parameters, x, y))

    def functional(self, x: Tensor, y: Tensor) -> Tensor:
        """The same inside ``torch.func`` transforms."""
        return flat(self.functional_at({name: p.detach() for name, p in self.parameters.items()}, x, y))

    def at(self, parameters: Tensors, x: Tensor, y: Tensor) -> Tensors:
        """The gradient at other parameters, which need it, by name."""
        value = functional_call(self._module, self._tensors(parameters), (x, y))
        parts = torch.autograd.grad(value, list(parameters.values()), create_graph=True, materialize_grads=True)
        return dict(zip(parameters, parts, strict=True))

    def functional_at(self, parameters: Tensors, x: Tensor, y: Tensor) -> Tensors:
        """The same inside ``torch.func`` transforms."""

        def loss(parameters: Tensors) -> Tensor:
            return functional_call(self._module, self._tensors(parameters), (x, y))

        return torch.func.grad(loss)(parameters)

    def by_row(self, rows: int) -> Callable[[Tensor, Tensor], Tensor]:
        """``(x, y) -> (R, d)`` for ``x`` ``(R, B, *shape)`` and labels ``(R, B, ...)``, all rows in one pass.

        Once more differentiable, by plain automatic differentiation. Right for losses that are means over records and
        models that look at each record for itself: who uses it, compares.

        Raises:
            NoRows: (the function) this model has layers for which there is no such pass.
        """
        parameters = {name: p.detach() for name, p in self.parameters.items()}
        mode, looked = PerRow(rows, parameters), False

        def run(x: Tensor, y: Tensor) -> Tensor:
            nonlocal looked
            batch = x.flatten(0, 1), y.flatten(0, 1)
            if not looked and self._astray(rows, batch):
                raise NoRows("the loss takes parameters past their layers")
            looked = True
            return gradients(lambda: functional_call(self._module, self._tensors(parameters), batch), mode)

        return run

    def _astray(self, rows: int, batch: tuple[Tensor, Tensor]) -> bool:
        own = {name: p.detach().clone().requires_grad_() for name, p in self.parameters.items()}
        detached = tuple(t.detach() for t in batch)
        whole = partial(functional_call, self._module, self._tensors(own), detached)
        return astray(whole, PerRow(rows, own), list(own.values()))

    @property
    def model(self) -> nn.Module:
        """The module that is run, for hooks; its own weights mean nothing."""
        return self._module.model

    def outputs(self, x: Tensor) -> Tensor:
        """The model's output for a batch."""
        tensors = {**self.parameters, **self.buffers}
        return functional_call(self._module.model, tensors, (x,))

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """The model's output for a batch, without a graph."""
        return self.outputs(x)


def flat(tensors: Tensors) -> Tensor:
    """All entries as one vector."""
    return torch.cat([t.reshape(-1) for t in tensors.values()])


def _stateless(model: nn.Module) -> nn.Module:
    """A model whose forward pass changes nothing: what a training-mode BatchNorm would update is taken out."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
        elif isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    return model
