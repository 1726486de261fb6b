"""The attack whose cost is most of a leakage experiment's: iterations of gradient inversion."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from privbench.attacks.leakage.inverting_gradients import InvertingGradients
from privbench.attacks.leakage.observe import observe
from privbench.benchmarks.conform import require
from privbench.benchmarks.inversion.case import make_case
from privbench.benchmarks.overhead.workloads import pictures
from privbench.benchmarks.overhead.workloads.workload import Bench, Case, Steps
from privbench.benchmarks.tasks.models import SmallCNN, make
from privbench.benchmarks.tasks.models.architecture import Architecture


@dataclass(frozen=True)
class GradientInversion:
    """Inverting Gradients (Geiping et al. 2020) on the gradient of one model at pictures of noise, never compiled.

    Args:
        model: the architecture.
        records: behind the gradient.
        shape: of a picture: channels, height, width.
        iterations: in a repeat; setting up the attack is part of it.
        seed: of weights, pictures and the attack.
    """

    model: Architecture = field(default_factory=SmallCNN)
    records: int = 1
    shape: tuple[int, int, int] = (3, 32, 32)
    iterations: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.records >= 1, "records", self.records, "1 or more")
        require(min(self.shape) >= 1, "shape", self.shape, "channels, height and width from 1")
        require(self.iterations >= 1, "iterations", self.iterations, "1 or more")
        require(0 <= self.seed < 2**63, "seed", self.seed, "0 to 2^63 - 1")

    def cases(self, bench: Bench) -> Iterator[Case]:
        name = f"records{self.records}"
        yield Case(name, self._open, unit="iterations", calls=self.iterations, threads=len(bench.cpus))

    @contextmanager
    def _open(self) -> Iterator[Steps]:
        model = make(self.model, pictures.spec(self.shape), self.seed)
        x, y = pictures.batch(self.shape, self.records, self.seed)
        gradient = torch.autograd.grad(F.cross_entropy(model(x), y), [*model.parameters()])
        case = make_case(
            model,
            [*gradient],
            self.shape,
            classes=pictures.CLASSES,
            records=self.records,
            kind="gradient",
            learning_rate=None,
            local_steps=1,
            batch_size=None,
            loss="cross_entropy",
            mode="eval",
            mean=0.0,
            std=1.0,
            clip=None,
            noise_std=0.0,
        )
        view = case.view()
        observation = observe(view, 1, 0)
        assert observation is not None, "a plain gradient is readable"
        attack = InvertingGradients(iterations=self.iterations, compile="never")
        yield Steps(lambda: attack.reconstruct(view, observation, torch.Generator().manual_seed(self.seed)))
