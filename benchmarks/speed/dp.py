"""What a private step of training costs over one without privacy, ours and each of Opacus' ways, interleaved.

    python -m privbench.benchmarks.speed.dp [--models cnn resnet18] [--repeats 20] [--threads 2]

A step samples nothing: all take the same batch, and do everything from the forward pass to the changed weights. Before
its time is believed, the clipped sum of each is compared with that of one backward pass a record. Memory is the growth
of a process of its own over two steps.
"""

import argparse
import importlib.metadata
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privbench.benchmarks.federation.trainer import Trainer
from privbench.benchmarks.federation.update import Layout
from privbench.benchmarks.speed.memory import grown
from privbench.benchmarks.tasks.classification import Classification
from privbench.benchmarks.tasks.models import ResNet18, make
from privbench.benchmarks.tasks.task import Spec
from privbench.defenses.accounting.plan import Facts, RecordLevel
from privbench.defenses.local import DPSGD, Local
from privbench.defenses.local.per_sample import ENGINES, Units, choose

CLIP, RATE = 1.0, 1e-3
PLAIN, OURS = "PyTorch, no privacy", "privbench, no privacy"


@dataclass(frozen=True)
class Work:
    """A batch and the model that is trained on it.

    Args:
        batch: records.
        shape: of one.
        model: with random weights from seed 0.
    """

    batch: int
    shape: tuple[int, int, int]
    model: Callable[[], nn.Module]

    def records(self) -> tuple[Tensor, Tensor]:
        made = torch.Generator().manual_seed(1)
        return torch.randn(self.batch, *self.shape, generator=made), torch.randint(0, 10, (self.batch,), generator=made)


def cnn() -> nn.Module:
    """The 26,010 parameters of Papernot et al. 2021, Table 1, and of Opacus' MNIST example, with tanh."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, 2, padding=3),
        nn.Tanh(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, 2),
        nn.Tanh(),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(512, 32),
        nn.Tanh(),
        nn.Linear(32, 10),
    )


def resnet18() -> nn.Module:
    spec = Spec("images", (3, 32, 32), tuple("0123456789"), torch.zeros(3), torch.ones(3), "image")
    return make(ResNet18(norm="group"), spec, 0)


MODELS = {"cnn": Work(256, (1, 28, 28), cnn), "resnet18": Work(32, (3, 32, 32), resnet18)}

Step = Callable[[], None]


@dataclass(frozen=True)
class Contender:
    """One way to train.

    Args:
        step: a whole one.
        gradient: what the last step moved the weights along, without noise: mean of clipped gradients, flat.
    """

    step: Step
    gradient: Callable[[], Tensor]


def ours(work: Work, local: Local, noise: float) -> Contender:
    """The suite's own trainer."""
    model, (x, y) = work.model(), work.records()
    layout = Layout.of(model)
    trainer = Trainer(model, layout, Classification.loss, local, torch.device("cpu"))
    layout.write(layout.read(model), trainer.model)
    n = work.batch
    facts = Facts(1, 1, 1.0, "fixed", (60_000,), (n,), (1,))
    plan = RecordLevel(delta=1e-6, clip=CLIP, noise_multiplier=noise).bind(facts) if local.private else None
    generator = torch.Generator().manual_seed(0)
    batch = Units(x.contiguous(memory_format=torch.channels_last), y)

    def step() -> None:
        trainer.local.gradient(trainer, [batch], 0, plan, generator)
        trainer.weights.add_(trainer.gradient, alpha=-RATE)

    return Contender(step, lambda: _flat(trainer.model))


def plain(work: Work) -> Contender:
    """A PyTorch user's loop."""
    model, (x, y) = work.model(), work.records()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return Contender(step, lambda: _flat(model))


def opacus(work: Work, mode: str, noise: float) -> Contender:
    """As its documentation says, without its sampler."""
    from opacus import PrivacyEngine

    model, (x, y) = work.model(), work.records()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=work.batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = PrivacyEngine().make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=RATE),
            data_loader=data,
            noise_multiplier=noise,
            max_grad_norm=CLIP,
            poisson_sampling=False,
            grad_sample_mode=mode,
            criterion=nn.CrossEntropyLoss(),
        )
    private, optimizer, criterion = made[0], made[1], made[2] if mode == "ghost" else F.cross_entropy

    def step() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.zero_grad()
            criterion(private(x), y).backward()
            optimizer.step()

    return Contender(step, lambda: _flat(private))


def contenders(work: Work, noise: float) -> dict[str, Callable[[], Contender]]:
    """By name, made when called."""
    named: dict[str, Callable[[], Contender]] = {PLAIN: lambda: plain(work), OURS: lambda: ours(work, Local(), noise)}
    for name in ENGINES:
        named[f"privbench {name}"] = lambda name=name: ours(work, DPSGD(per_sample=name), noise)
    for mode in ("hooks", "functorch", "ew", "ghost"):
        named[f"opacus {mode}"] = lambda mode=mode: opacus(work, mode, noise)
    return named


def _flat(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.detach().flatten() for p in model.parameters() if p.grad is not None])


def check(work: Work) -> dict[str, float]:
    """How far each one's clipped sum lies from the loop's, over the loop's norm.

    Raises:
        AssertionError: if it is more than 0.5%: in float32, ties in pooling fall differently in a batch and alone.
    """
    found = {}
    for name, make_one in contenders(work, 0.0).items():
        if name not in (PLAIN, OURS):
            one = make_one()
            one.step()
            found[name] = one.gradient()
    reference = found["privbench loop"]
    far = {name: float((g - reference).norm() / reference.norm()) for name, g in found.items()}
    wrong = {name: value for name, value in far.items() if value > 5e-3}
    assert not wrong, f"not the same sum: {wrong}"
    return far


def timed(work: Work, repeats: int) -> dict[str, list[float]]:
    """Seconds of each one's steps, one of each in turn."""
    made = {name: one() for name, one in contenders(work, 1.0).items()}
    for one in made.values():
        one.step()
    taken: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(repeats):
        for name, one in made.items():
            start = time.perf_counter()
            one.step()
            taken[name].append(time.perf_counter() - start)
    return taken


def memory(model: str, name: str, threads: int) -> float:
    """GiB that a process of its own grows by over two steps."""
    command = [sys.executable, "-m", "privbench.benchmarks.speed.dp", "--grow", model, name, "--threads", str(threads)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 2**20


def grow(model: str, name: str) -> int:
    """KiB that this process grows by over two steps."""
    # What a first convolution sets up once belongs to nobody's step.
    F.conv2d(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 3, 3))
    one = contenders(MODELS[model], 1.0)[name]()
    return grown(lambda: (one.step(), one.step()))


def table(model: str, taken: dict[str, list[float]], far: dict[str, float], grown: dict[str, float]) -> str:
    """Median seconds, and the median over turns of the ratio to each of the two steps without privacy."""
    work = MODELS[model]
    parameters = sum(p.numel() for p in work.model().parameters())
    lines = [
        f"{model}: {parameters:,} parameters, batch {work.batch} of {work.shape}",
        f"{'':24} {'seconds':>8} {'to PyTorch':>11} {'to ours':>8} {'GiB':>6} {'off by':>8}",
    ]
    for name, seconds in taken.items():
        ratios = [statistics.median(s / b for s, b in zip(seconds, taken[base], strict=True)) for base in (PLAIN, OURS)]
        line = f"{name:24} {statistics.median(seconds):8.4f} {ratios[0]:10.2f}x {ratios[1]:7.2f}x {grown[name]:6.2f}"
        lines.append(f"{line} {far[name]:8.0e}" if name in far else line)
    chosen = choose(work.model(), Classification.loss, Units(*work.records()))
    return "\n".join([*lines, f"chosen by measurement: {chosen}"])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--grow", nargs=2, metavar=("MODEL", "CONTENDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    if asked.grow:
        print(grow(*asked.grow))
        return
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "opacus"))
    print(f"{platform.machine()}, {asked.threads} threads, {versions}; {asked.repeats} interleaved steps\n")
    for model in asked.models:
        far = check(MODELS[model])
        taken = timed(MODELS[model], asked.repeats)
        grown = {name: memory(model, name, asked.threads) for name in taken}
        print(table(model, taken, far, grown) + "\n")


if __name__ == "__main__":
    main()
