"""Soteria (Sun et al. 2021): a heuristic that prunes the gradient of one layer, and states no epsilon."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from privbench.benchmarks.build import ConfigError, require
from privbench.benchmarks.federation.view import Known
from privbench.benchmarks.shares import at_least
from privbench.defenses.local.local import Local
from privbench.defenses.local.per_sample.engine import Loss, Units

if TYPE_CHECKING:
    from privbench.benchmarks.federation.trainer import Trainer
    from privbench.defenses.accounting.plan import Plan

CHUNK = 64
"""Features whose derivatives are computed at once; it bounds memory."""
AT_ONCE = 512
"""Inputs moved along probes at once; likewise."""
STEP = 1e-3
"""How far, in standardised space: small enough for networks that bend, large enough for float32."""


@dataclass(frozen=True)
class Soteria(Local):
    """Every step leaves out the gradient of one linear layer at some of the features that it reads (Sun et al. 2021).

    What a linear layer reads is the representation r(x). Its features with the largest |r_f| / ||d r_f / d x|| are
    pruned (Algorithm 1; here the norm is of the derivative by standardised inputs). In a batch the ratios of its
    records are added up. All other gradients are sent as they are, so that an attacker who leaves this layer out is
    not disturbed (Balunovic et al. 2022); the zeros are visible, so attacks are told.

    Args:
        prune: share of the features, in (0, 1]; the paper has up to 0.8.
        layer: name of the ``nn.Linear``; ``None`` for the first.
        probes: random directions that the derivatives' norms are estimated from (their ratios' relative error is about
            ``1 / sqrt(2 probes)``); ``None`` for exact ones, at one backward pass a feature.
    """

    prune: float = 0.8
    layer: str | None = None
    probes: int | None = 64
    heuristic = True

    def __post_init__(self) -> None:
        require(0 < self.prune <= 1, "prune", self.prune, "a share in (0, 1]")
        require(self.probes is None or self.probes >= 1, "probes", self.probes, "at least 1, or null for exact norms")

    def check(self, model: nn.Module) -> None:
        self.defended(model)

    def defended(self, model: nn.Module) -> nn.Linear:
        """The layer whose gradient is pruned.

        Raises:
            ConfigError: if the model has no linear layer, or none of this name.
        """
        linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
        if not linear:
            hint = "one with a fully connected layer (nn.Linear), whose gradient Soteria prunes"
            raise ConfigError("model", type(model).__name__, hint)
        if self.layer is not None and self.layer not in linear:
            raise ConfigError("defense.local.layer", self.layer, f"one of {', '.join(linear)}, or null for the first")
        return linear[self.layer or next(iter(linear))]

    def known(self, source: str, client: int) -> Known:
        return Known(pruned=source == "update")

    def prepare(self, model: nn.Module, loss: Loss) -> "Representation":
        return Representation(model, self.defended(model))

    def gradient(
        self, trainer: "Trainer", parts: list[Units], client: int, plan: "Plan | None", generator: torch.Generator
    ) -> None:
        super().gradient(trainer, parts, client, plan, generator)
        (units,) = parts
        if not len(units):
            return
        reader: Representation = trainer.prepared
        r, norms = reader.exact(units.x) if self.probes is None else reader.probed(units.x, self.probes, generator)
        weight = reader.layer.weight
        assert weight.grad is not None
        weight.grad[:, self.pruned(r, norms)] = 0.0

    def pruned(self, r: Tensor, norms: Tensor) -> Tensor:
        """Numbers of the features that are left out, int64.

        Args:
            r: the representation, ``(b, features)``.
            norms: ``||d r_f / d x||`` of each record, ``(b, features)``.
        """
        # What doesn't depend on the input (a ReLU that is off) tells nothing of it.
        ratio = torch.where(norms > 0, r.abs() / norms.clamp(min=1e-30), 0.0).sum(0)
        return ratio.argsort(descending=True, stable=True)[: at_least(self.prune, r.shape[1])]


class Representation:
    """What one layer of a model reads, and how it moves with the input.

    Args:
        model: whose gradients and statistics are left as they are.
        layer: of the model.
    """

    def __init__(self, model: nn.Module, layer: nn.Linear):
        self.model, self.layer = model, layer

    def exact(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``r`` and ``||d r_f / d x||``, both ``(b, features)``, by one backward pass a feature.

        Args:
            x: ``(b, *shape)``.
        """
        x = x.detach().requires_grad_()
        r = self._read(x)
        rows = torch.eye(r.shape[1], device=r.device).split(CHUNK)
        norms: list[Tensor] = []
        for row in rows:
            # Records don't mix, so that one pass is of all records' derivatives.
            outputs = row[:, None].expand(-1, *r.shape)
            (found,) = torch.autograd.grad(r, x, outputs, retain_graph=True, is_grads_batched=True)
            norms.append(found.flatten(2).norm(dim=2).T)
        return r.detach(), torch.cat(norms, 1)

    def probed(self, x: Tensor, probes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """As :meth:`exact`, with norms estimated: ``E_v (d r_f / d x . v)^2 = ||d r_f / d x||^2`` for normal v.

        Args:
            x: ``(b, *shape)``.
            probes: directions of each record, the same for all features. Derivatives along them are differences.
            generator: on the CPU.
        """
        with torch.no_grad():
            r, total = self._read(x), None
            at_once = max(1, AT_ONCE // len(x))
            for done in range(0, probes, at_once):
                k = min(at_once, probes - done)
                moves = STEP * torch.randn(k, *x.shape, generator=generator).to(x)
                near = self._read((x + moves).flatten(0, 1)).unflatten(0, (k, len(x)))
                squares = ((near - r) / STEP).square().sum(0)
                total = squares if total is None else total + squares
            assert total is not None
            return r, (total / probes).sqrt()

    def _read(self, x: Tensor) -> Tensor:
        """What the layer reads, ``(b, features)``; without dropout, and without counting for BatchNorm."""
        found: list[Tensor] = []
        hook = self.layer.register_forward_pre_hook(lambda layer, inputs: found.append(inputs[0]))
        training = [m for m in self.model.modules() if m.training]
        self.model.eval()
        try:
            self.model(x)
        finally:
            hook.remove()
            for module in training:
                module.training = True
        require(found[0].dim() == 2, "defense.local.layer", self.layer, "a layer that reads one vector a record")
        return found[0]
