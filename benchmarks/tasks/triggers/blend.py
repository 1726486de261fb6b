"""A picture blended into the whole input (Chen et al. 2017)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from privbench.benchmarks.build import require
from privbench.benchmarks.tasks.task import Spec
from privbench.benchmarks.tasks.triggers.trigger import Trigger


@dataclass(frozen=True)
class Blend(Trigger):
    """``(1 - opacity) x + opacity k`` in raw values, with a key k of uniform noise that all inputs share.

    Args:
        opacity: of the key, in (0, 1] (the paper's alpha, 0.2).
        key: names the noise.
    """

    opacity: float = 0.2
    key: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.opacity <= 1, "opacity", self.opacity, "a share in (0, 1]")
        require(0 <= self.key < 2**63, "key", self.key, "a whole number from 0")

    def check(self, spec: Spec) -> None:
        require(spec.domain == "image", "task.trigger", "Blend", f"null: {spec.name} has {spec.domain}s, no images")
        super().check(spec)

    def apply(self, x: Tensor, spec: Spec, generator: torch.Generator | None = None) -> Tensor:
        self.check(spec)
        raw = torch.rand(spec.shape, generator=torch.Generator().manual_seed(self.key))
        return torch.lerp(x, ((raw - spec.mean) / spec.std).to(x).expand_as(x), self.opacity)

    def share(self, spec: Spec) -> float:
        return 1.0
