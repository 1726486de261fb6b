"""DP-SGD on each client (Abadi et al. 2016), with Opacus' per-sample gradients."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.settings import LocalWork
from privbench.defenses.accounting.plan import RecordPlan
from privbench.defenses.local.local import Local
from privbench.defenses.noise import gaussian

if TYPE_CHECKING:
    from privbench.benchmarks.federation.trainer import Trainer
    from privbench.defenses.accounting.plan import Plan


@dataclass(frozen=True)
class DPSGD(Local):
    """Every step samples each record with q = batch / records, clips each record's gradient and adds noise.

    The sum of clipped gradients plus N(0, (sigma C)^2) is divided by the expected batch size. Clip, noise and
    source are the privacy plan's. An empty batch is a step too: it adds noise and counts. A record whose gradient
    isn't finite contributes zero.
    """

    private = True

    def check(self, model: nn.Module) -> None:
        from opacus.validators import ModuleValidator

        errors = ModuleValidator.validate(model, strict=False)
        if errors:
            raise ConfigError(
                "model",
                type(model).__name__,
                f"DP-SGD can't train it: {str(errors[0]).split('. ')[0]}; use GroupNorm in place of BatchNorm",
            )

    def prepare(self, model: nn.Module) -> nn.Module:
        from opacus import GradSampleModule

        return GradSampleModule(model, loss_reduction="mean")

    def batches(self, records: int, work: LocalWork, generator: torch.Generator) -> Iterator[Tensor]:
        rate = work.batch(records) / records
        for _ in range(work.local_steps(records)):
            yield torch.nonzero(torch.rand(records, generator=generator) < rate).squeeze(1)

    def visited(self, records: int, work: LocalWork) -> int:
        missed = (1 - work.batch(records) / records) ** work.local_steps(records)
        return max(1, round(records * (1 - missed)))

    def gradient(
        self, trainer: "Trainer", x: Tensor, y: Tensor, client: int, plan: "Plan | None", generator: torch.Generator
    ) -> None:
        assert isinstance(plan, RecordPlan)
        gradient = trainer.gradient
        parameters = [p for p in trainer.model.parameters() if p.requires_grad]
        gradient.zero_()
        if len(y):
            with warnings.catch_warnings():
                # Inputs need no gradient here, which the full backward hooks warn of on every layer.
                warnings.filterwarnings("ignore", message="Full backward hook is firing")
                trainer.loss(trainer.model, (x, y)).backward()
            samples = [p.grad_sample for p in parameters]  # pyright: ignore[reportAttributeAccessIssue]
            factor = _clip_factors(samples, plan.clip)
            for p, per_sample in zip(parameters, samples, strict=True):
                assert p.grad is not None
                p.grad.copy_(torch.tensordot(factor, per_sample.nan_to_num(0.0, 0.0, 0.0), dims=1))
                p.grad_sample = None  # pyright: ignore[reportAttributeAccessIssue]
        if trainer.drawn is not None:
            # An audit's records: the same clip, before the same noise.
            norm = torch.full((1, 1), trainer.drawn.length * plan.clip)
            trainer.add(trainer.drawn.direction * norm[0] * _clip_factors([norm], plan.clip))
        sigma = plan.sigmas[client]
        noise = gaussian(len(gradient), sigma * plan.clip, plan.noise_source, generator)
        gradient.add_(noise.to(gradient.device)).div_(plan.facts.batch[client])


def _clip_factors(samples: list[Tensor], clip: float) -> Tensor:
    """``min(1, C / norm)`` of each record's gradient, shape (b,); 0 where it isn't finite."""
    norms = torch.stack([s.flatten(1).norm(dim=1) for s in samples]).norm(dim=0)
    # Just below C, since the norm of a clipped float32 gradient can come out at 1.000004 C.
    factors = (clip * (1 - 1e-5) / norms.clamp(min=1e-12)).clamp(max=1.0)
    return torch.where(torch.isfinite(norms), factors, torch.zeros_like(factors))
