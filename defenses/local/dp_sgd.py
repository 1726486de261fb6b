"""DP-SGD on each client (Abadi et al. 2016)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from privbench.benchmarks.build import ConfigError, require
from privbench.benchmarks.federation.randomness import chosen
from privbench.benchmarks.federation.settings import LocalWork
from privbench.benchmarks.federation.spans import span
from privbench.defenses.accounting.plan import RecordPlan
from privbench.defenses.local.local import Local
from privbench.defenses.local.per_sample import ENGINES, ClippedSum, Units, choose, verify
from privbench.defenses.local.per_sample.engine import Loss, factors
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

    Args:
        per_sample: how gradients are clipped one by one: ``book_keeping``, ``vmap``, ``loop``, or what is fastest by a
            short measurement (``auto``), which the manifest names: they differ in rounding.
        memory: GiB; batches are worked off in parts that need no more for all that grows with a batch.
    """

    per_sample: Literal["auto", "book_keeping", "vmap", "loop"] = "auto"
    memory: float = 1.0
    private = True

    def __post_init__(self) -> None:
        hint = f"auto, {', '.join(ENGINES)}"
        require(self.per_sample in ("auto", *ENGINES), "per_sample", self.per_sample, hint)
        require(self.memory > 0, "memory", self.memory, "GiB, more than 0")

    @property
    def chosen(self) -> str | None:
        return self.per_sample

    def check(self, model: nn.Module) -> None:
        from opacus.validators import ModuleValidator

        errors = ModuleValidator.validate(model, strict=False)
        if errors:
            raise ConfigError(
                "model",
                type(model).__name__,
                f"DP-SGD can't train it: {str(errors[0]).split('. ')[0]}; use GroupNorm in place of BatchNorm",
            )

    def settle(self, chosen: str | None, model: nn.Module, loss: Loss, batch: Units) -> "DPSGD":
        """With the engine that a run began with, the one that is named, or the fastest here.

        Raises:
            ConfigError: if the one that is named doesn't give this model's gradients.
        """
        name: Any = chosen or self.per_sample
        if name == "auto":
            name = choose(model, loss, batch, self.memory)
        elif chosen is None:
            verify(model, loss, name, batch)
        return replace(self, per_sample=name)

    def prepare(self, model: nn.Module, loss: Loss) -> ClippedSum:
        return ClippedSum(model, loss, self.per_sample, self.memory)

    def batches(self, records: int, work: LocalWork, generator: torch.Generator) -> Iterator[Tensor]:
        rate = work.batch(records) / records
        for _ in range(work.local_steps(records)):
            yield torch.nonzero(chosen(records, rate, generator)).squeeze(1)

    def visited(self, records: int, work: LocalWork) -> int:
        missed = (1 - work.batch(records) / records) ** work.local_steps(records)
        return max(1, round(records * (1 - missed)))

    def gradient(
        self, trainer: "Trainer", parts: list[Units], client: int, plan: "Plan | None", generator: torch.Generator
    ) -> None:
        assert isinstance(plan, RecordPlan)
        gradient = trainer.gradient
        gradient.zero_()
        with span("per_sample_gradients", client):
            for units in parts:
                trainer.prepared.add(units, plan.clip)
        if trainer.drawn is not None:
            # An audit's records: the same clip, before the same noise.
            norm = torch.tensor(trainer.drawn.length * plan.clip)
            trainer.add(trainer.drawn.direction * norm * factors(norm, plan.clip))
        sigma = plan.sigmas[client]
        with span("local_noise", client):
            noise = gaussian(len(gradient), sigma * plan.clip, plan.noise_source, generator)
            gradient.add_(noise.to(gradient.device)).div_(plan.facts.batch[client])
