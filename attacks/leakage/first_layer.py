"""The first trained layer, where it is linear on the flattened input: what its gradient says of inputs is algebra."""

import copy
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from privbench.attacks.leakage.attack import AttackFailed, Reconstruction, choose
from privbench.attacks.leakage.gradient import ClientGradient
from privbench.attacks.leakage.objectives import Cosine, SquaredDistance
from privbench.attacks.leakage.observe import Observation
from privbench.benchmarks.federation.update import Layout
from privbench.benchmarks.federation.view import Public

CHUNK = 1 << 22
"""Numbers in a block of records and classes whose slopes are computed together."""


@dataclass(frozen=True)
class _Call:
    """A trained module's turn in a forward pass."""

    name: str
    module: nn.Module
    input: Tensor
    output: Tensor


@dataclass(frozen=True)
class FirstLayer:
    """``z = W x + b`` on the flattened input, at one model. Everything is float64.

    Args:
        public: what is known of the federation.
        model: the network at the observed weights, in evaluation mode.
        name: of the layer, as in ``named_modules``.
        gated: whether a ReLU follows: no gradient flows through a unit where ``z <= 0``.
        final: whether ``z`` are the logits (logistic regression).
        second: the linear layer that sees ``ReLU(z)``, ``None`` where there is none.
    """

    public: Public
    model: nn.Module
    name: str
    gated: bool
    final: bool
    second: str | None

    @classmethod
    def of(cls, public: Public, vector: Tensor) -> "FirstLayer":
        """Find it by a forward pass of two random inputs.

        Args:
            vector: the model, ``(layout.size,)``.

        Raises:
            AttackFailed: if the first trained layer isn't ``nn.Linear`` with a trained bias on the flattened input.
        """
        model = copy.deepcopy(public.model).to(vector.device).eval()
        public.layout.write(vector, model)
        model = model.double()
        # Probes of zero mean and unit spread, as standardised inputs have.
        probe = torch.randn(2, *public.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        probe = probe.to(vector.device)
        calls, logits = _trace(model, probe)
        if not calls:
            raise AttackFailed("no trained layer takes part in the model's forward pass")
        first, trained = calls[0], public.layout.names[: public.layout.parameters]
        kind = type(first.module).__name__
        if not isinstance(first.module, nn.Linear):
            raise AttackFailed(f"the first trained layer, {first.name!r}, is {kind}: inputs need nn.Linear there")
        if not _same(first.input.flatten(1), probe.flatten(1)):
            raise AttackFailed(f"the first trained layer, {first.name!r}, doesn't see the flattened input itself")
        if any(_key(first.name, part) not in trained for part in ("weight", "bias")):
            raise AttackFailed(f"the first layer, {first.name!r}, trains no bias: its rows have no known length")
        gate = first.output.clamp_min(0)
        following = calls[1] if len(calls) > 1 else None
        linear = following is not None and isinstance(following.module, nn.Linear)
        second = following.name if following and linear and _same(following.input, gate) else None
        final = _same(first.output, logits)
        return cls(public, model, first.name, not final and _gated(model, first, public, probe), final, second)

    @property
    def linear(self) -> nn.Linear:
        """The layer."""
        found = self.model.get_submodule(self.name)
        assert isinstance(found, nn.Linear)
        return found

    def part(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's own of a gradient ``(layout.trainable,)``: ``dL/dW`` ``(H, n)`` and ``dL/db`` ``(H,)``."""
        parts = trained_parts(self.public.layout, gradient.double())
        return parts[_key(self.name, "weight")], parts[_key(self.name, "bias")]

    def slopes(self, x: Tensor, y: Tensor) -> Tensor:
        """``dL/dz`` of each record as if it were alone, ``(M, H)``, for ``x`` ``(M, n)`` and labels ``(M,)``."""
        kept: list[Tensor] = []

        def keep(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
            kept.append(output)
            return output.clone()  # an activation that works in place changes the copy

        hook = self.linear.register_forward_hook(keep)
        try:
            value = self.public.loss(self.model, (x.reshape(-1, *self.public.shape), y)) * len(x)
        finally:
            hook.remove()
        return torch.autograd.grad(value, kept[0])[0].reshape(len(x), -1)

    def by_class(self, x: Tensor) -> Tensor:
        """:meth:`slopes` for every class, ``(M, C, H)``; ask for :meth:`blocks` of records at a time."""
        classes = self.public.classes
        y = torch.arange(classes, device=x.device).repeat(len(x))
        return self.slopes(x.repeat_interleave(classes, 0), y).reshape(len(x), classes, -1)

    def blocks(self, x: Tensor) -> tuple[Tensor, ...]:
        """``x`` ``(M, n)`` in parts whose slopes for all classes fit into memory."""
        wide = self.public.classes * (self.linear.out_features + self.linear.in_features)
        return x.split(max(1, CHUNK // wide))

    def labels(self, x: Tensor, columns: Tensor) -> Tensor:
        """``(M,)``: the classes whose slopes point most nearly along ``columns`` ``(M, H)``, whatever their length."""
        return torch.cat([
            torch.cosine_similarity(self.by_class(part), column[:, None], dim=-1).argmax(1)
            for part, column in zip(self.blocks(x), columns.split(len(self.blocks(x)[0])), strict=True)
        ])  # fmt: skip


def trained_parts(layout: Layout, gradient: Tensor) -> dict[str, Tensor]:
    """Named views into a gradient of shape ``(layout.trainable,)``."""
    names, shapes = layout.names[: layout.parameters], layout.shapes[: layout.parameters]
    parts = gradient.split([prod(s) for s in shapes])
    return {n: p.view(s) for n, s, p in zip(names, shapes, parts, strict=True)}


def finish(public: Public, observation: Observation, x: Tensor, y: Tensor) -> Reconstruction:
    """A reconstruction of records ``x`` ``(B, n)`` with labels ``(B,)``; its objective is the relative squared distance
    of gradients, under a published clip their cosine distance.

    Raises:
        AttackFailed: if it isn't finite.
    """
    x = x.reshape(-1, *public.shape).to(observation.gradient)
    distance = Cosine() if observation.known.clip else SquaredDistance()
    value = distance(ClientGradient(public, observation.model)(x, y).detach(), observation.gradient)
    return choose(x[None], y[None], [float(value)])


def _key(name: str, part: str) -> str:
    return f"{name}.{part}" if name else part


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.allclose(a, b, rtol=1e-9, atol=1e-12))


@torch.no_grad()
def _trace(model: nn.Module, probe: Tensor) -> tuple[list[_Call], Tensor]:
    """The trained modules in the order of their turns, and the model's output."""
    calls: list[_Call] = []

    def hook(name: str):
        def record(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            calls.append(_Call(name, module, given[0].clone(), output.clone()))

        return record

    own = [(n, m) for n, m in model.named_modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
    hooks = [module.register_forward_hook(hook(name)) for name, module in own]
    try:
        return calls, model(probe)
    except (RuntimeError, ValueError, IndexError) as error:
        raise AttackFailed(f"the model doesn't take inputs of shape {tuple(probe.shape[1:])} ({error})") from error
    finally:
        for one in hooks:
            one.remove()


def _gated(model: nn.Module, first: _Call, public: Public, probe: Tensor) -> bool:
    """Whether gradients vanish exactly where the layer's output is negative, and not elsewhere."""
    layer = FirstLayer(public, model, first.name, False, False, None)
    slopes = layer.slopes(probe.flatten(1), torch.zeros(len(probe), dtype=torch.int64, device=probe.device))
    closed = first.output <= 0
    return bool(closed.any()) and not bool(slopes[closed].any()) and bool(slopes[~closed].any() or closed.all())
