"""What is known of records before any gradient is seen, as penalties on a candidate batch."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from privbench.attacks.leakage.gradient import ClientGradient


class Prior(Protocol):
    """How unlikely a candidate batch is."""

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` of shape ``(B, *shape)``, standardised; a scalar, 0 at best."""
        ...


@dataclass(frozen=True)
class TotalVariation:
    """Mean absolute difference of neighbours, summed over the spatial dimensions; standardised space.

    No padding: a constant input has 0. Inputs ``(B, C, H, W)`` have two spatial dimensions, signals ``(B, C, T)`` one,
    tables ``(B, F)`` none, for which the value is 0.
    """

    def __call__(self, x: Tensor) -> Tensor:
        spatial = [d for d in range(2, x.ndim) if x.shape[d] > 1]
        return sum((x.diff(dim=d).abs().mean() for d in spatial), x.new_zeros(()))


@dataclass(frozen=True)
class L2:
    """Mean square: standardised records are near 0."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.square().mean()


@dataclass
class BatchNormStatistics:
    """``sum_l ||mean_l(x) - mean_l|| + ||var_l(x) - var_l||`` over BatchNorm layers (Yin et al. 2021, eq. 7).

    Variances are the unbiased ones, as in the averages that a layer keeps.

    Args:
        gradient: whose model is run.
        statistics: by layer's name, the means and variances ``(channels,)`` that its input is expected to have. Where
            they come from is the attack's to declare.
    """

    gradient: ClientGradient
    statistics: dict[str, tuple[Tensor, Tensor]]
    _inputs: dict[str, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for name, module in self.gradient.model.named_modules():
            if name in self.statistics:
                module.register_forward_pre_hook(self._keep(name))

    def _keep(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._inputs[name] = inputs[0]

        return hook

    def __call__(self, x: Tensor) -> Tensor:
        self._inputs.clear()
        self.gradient.outputs(x)
        total = x.new_zeros(())
        for name, (mean, variance) in self.statistics.items():
            seen = self._inputs.pop(name)
            over = [d for d in range(seen.ndim) if d != 1]
            spread = seen.var(over, correction=min(1, seen.numel() // seen.shape[1] - 1))
            total = total + _norm(seen.mean(over) - mean) + _norm(spread - variance)
        return total


def _norm(v: Tensor) -> Tensor:
    """A length whose gradient is finite at 0."""
    return (v.square().sum() + torch.finfo(v.dtype).tiny).sqrt()
