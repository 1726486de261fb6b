"""One step of SGD: forward, backward, update."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch.nn import functional as F

from privbench.benchmarks.conform import require
from privbench.benchmarks.overhead.workloads import pictures
from privbench.benchmarks.overhead.workloads.matrix_product import ONE_THREAD
from privbench.benchmarks.overhead.workloads.workload import Bench, Case, Steps, Unavailable
from privbench.benchmarks.tasks.models import ResNet18, SmallCNN, make
from privbench.benchmarks.tasks.models.architecture import Architecture


def _models() -> dict[str, Architecture]:
    return {"small_cnn": SmallCNN(), "resnet18": ResNet18()}


@dataclass(frozen=True)
class TrainingStep:
    """Each model with each batch size, on pictures of noise.

    Args:
        models: architectures by the name that their cases get.
        batch_sizes: records a step.
        shape: of a picture: channels, height, width.
        steps: in a repeat.
        device: ``cpu`` or ``cuda``; a graphics processor's step ends when it has computed it.
        ablations: the first model at the largest batch with one thread, on the processor.
        seed: of weights and pictures.
    """

    models: Mapping[str, Architecture] = field(default_factory=_models)
    batch_sizes: tuple[int, ...] = (8, 64)
    shape: tuple[int, int, int] = (3, 32, 32)
    steps: int = 5
    device: Literal["cpu", "cuda"] = "cpu"
    ablations: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        require(bool(self.models), "models", {}, "one architecture or more, by name")
        distinct = len(set(self.batch_sizes)) == len(self.batch_sizes)
        sizes = bool(self.batch_sizes) and min(self.batch_sizes) >= 1 and distinct
        require(sizes, "batch_sizes", self.batch_sizes, "numbers from 1, each once")
        require(min(self.shape) >= 1, "shape", self.shape, "channels, height and width from 1")
        require(self.steps >= 1, "steps", self.steps, "1 or more")
        require(0 <= self.seed < 2**63, "seed", self.seed, "0 to 2^63 - 1")

    def cases(self, bench: Bench) -> Iterator[Case]:
        for name in self.models:
            for size in self.batch_sizes:
                yield self._case(name, size, len(bench.cpus))
        if self.ablations and len(bench.cpus) > 1 and self.device == "cpu":
            yield self._case(next(iter(self.models)), max(self.batch_sizes), 1, ONE_THREAD)

    def _case(self, name: str, size: int, threads: int, ablation: str | None = None) -> Case:
        return Case(
            name=f"{name}-batch{size}",
            open=lambda: self._open(name, size),
            amount=size,
            unit="records",
            calls=self.steps,
            threads=threads,
            ablation=ablation,
        )

    @contextmanager
    def _open(self, name: str, size: int) -> Iterator[Steps]:
        if self.device == "cuda" and not torch.cuda.is_available():
            raise Unavailable("no graphics processor that PyTorch can use")
        model = make(self.models[name], pictures.spec(self.shape), self.seed).train().to(self.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        x, y = (part.to(self.device) for part in pictures.batch(self.shape, size, self.seed))

        def run() -> None:
            for _ in range(self.steps):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
            if self.device == "cuda":
                torch.cuda.synchronize()

        yield Steps(run)
