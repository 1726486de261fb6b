"""The work that every contender of a speed comparison does, and how they are compared."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from privbench.benchmarks.tasks import Classification
from privbench.benchmarks.tasks.models import SmallCNN, make
from privbench.benchmarks.tasks.sources import MNIST5k


@dataclass(frozen=True)
class Work:
    """FedAvg on MNIST-5k, IID: a two-convolution CNN of 63,786 parameters, SGD, one local epoch.

    Args:
        clients, cohort, rounds: numbers of; ``cohort`` clients take part in a round.
        batch_size, learning_rate, seed: of local training.
    """

    clients: int = 100
    cohort: int = 10
    rounds: int = 20
    batch_size: int = 10
    learning_rate: float = 0.1
    seed: int = 0

    def task(self) -> Classification:
        return Classification(MNIST5k())

    def model(self) -> torch.nn.Module:
        return make(SmallCNN(), self.task().spec, self.seed)

    def shares(self) -> list[torch.Tensor]:
        """Training indices by client."""
        return self.task().split(self.clients, self.seed)


@dataclass(frozen=True)
class Timing:
    """What one run of a contender took.

    Args:
        seconds: wall time of the rounds, without setting up (data, processes) and without evaluation.
        accuracy: of the final model, on the test records.
    """

    seconds: float
    accuracy: float


Contender = Callable[[Work], Timing]


def timed(function: Callable[[], None]) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def interleave(contenders: dict[str, Contender], work: Work, repeats: int) -> dict[str, list[Timing]]:
    """Run all contenders in turn, ``repeats`` times, so that a machine that slows down slows all of them."""
    timings: dict[str, list[Timing]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, contender in contenders.items():
            timings[name].append(contender(work))
    return timings


def table(timings: dict[str, list[Timing]], work: Work, baseline: str) -> str:
    """Median seconds a round, the median of the paired ratios to ``baseline``, and accuracy."""
    lines = [f"{work.clients} clients, {work.cohort} a round, {work.rounds} rounds, {len(timings[baseline])} repeats"]
    lines.append(f"{'engine':34} {'s/round':>8} {'min':>7} {'max':>7} {'speed':>6} {'accuracy':>9}")
    for name, runs in timings.items():
        seconds = [r.seconds / work.rounds for r in runs]
        ratio = statistics.median(b.seconds / r.seconds for r, b in zip(runs, timings[baseline], strict=True))
        lines.append(
            f"{name:34} {statistics.median(seconds):8.4f} {min(seconds):7.4f} {max(seconds):7.4f} {ratio:5.2f}x"
            f" {statistics.median(r.accuracy for r in runs):9.4f}"
        )
    return "\n".join(lines)
