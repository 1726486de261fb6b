"""Gradient inversion: this suite's engine against the loop of ``breaching`` (where it is installed) and a plain loop.

    python -m privbench.benchmarks.speed.inversion --images 16 --iterations 4800

Same gradients, same labels, one thread, CPU seconds, one process: every contender attacks the same images behind the
same untrained models. How few iterations reach the peer's mean dB is found by a ladder, each rung a run of its own.
Images: the CIFAR-10 test images that the package ``foolbox`` carries, where it is installed, else 32x32 crops of
scikit-learn's photographs. Compiling is part of this suite's time, its processes included, and nothing compiled earlier
is used. ``breaching`` is installed with ``pip install --no-deps breaching``.
"""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from privbench.attacks.leakage.attack import AttackFailed
from privbench.attacks.leakage.descent import Compile
from privbench.attacks.leakage.dlg import DLG
from privbench.attacks.leakage.family import Optimisation
from privbench.attacks.leakage.inverting_gradients import InvertingGradients
from privbench.attacks.leakage.observe import Observation
from privbench.benchmarks.federation.update import Layout
from privbench.benchmarks.federation.view import Public, View
from privbench.benchmarks.measures.images import psnr, to_raw
from privbench.benchmarks.tasks.models import ConvNet, LeNet, make
from privbench.benchmarks.tasks.task import Spec

CLASSES = tuple(str(n) for n in range(10))
MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1), torch.tensor([0.2470, 0.2435, 0.2616]).view(3, 1, 1)
SPEC = Spec("cifar10", (3, 32, 32), CLASSES, MEAN, STD, "image")


@dataclass(frozen=True)
class Scene:
    """What every contender attacks: one record each behind one model.

    Args:
        model: untrained.
        raw: images ``(n, 3, 32, 32)`` in [0, 1].
        labels: ``(n,)``, known to all contenders.
    """

    model: nn.Module
    raw: Tensor
    labels: Tensor

    @property
    def x(self) -> Tensor:
        """Standardised."""
        return (self.raw - MEAN) / STD

    def gradients(self, k: int) -> tuple[Tensor, ...]:
        """Of image k, by parameter."""
        value = loss(self.model, (self.x[[k]], self.labels[[k]]))
        return torch.autograd.grad(value, list(self.model.parameters()))

    def quality(self, found: list[Tensor]) -> Tensor:
        """PSNR in dB of each standardised reconstruction ``(1, 3, 32, 32)``."""
        return psnr(to_raw(torch.cat(found), MEAN, STD), self.raw[: len(found)])


@dataclass(frozen=True)
class Result:
    """What a contender took.

    Args:
        name: of it.
        seconds: CPU seconds an image.
        quality: dB by image.
        note: how it ran.
    """

    name: str
    seconds: float
    quality: Tensor
    note: str = ""


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def images(count: int) -> tuple[Tensor, Tensor, str]:
    """Raw images ``(count, 3, 32, 32)``, their labels, and where they come from."""
    spec = find_spec("foolbox")
    if spec is not None and spec.origin:
        from PIL import Image

        files = sorted((Path(spec.origin).parent / "data").glob("cifar10_*.png"))[:count]
        raw = torch.stack([torch.tensor(np.array(Image.open(f).convert("RGB"))).permute(2, 0, 1) / 255 for f in files])
        return raw, torch.tensor([int(f.stem.split("_")[-1]) for f in files]), "CIFAR-10 test images"
    from sklearn.datasets import load_sample_images

    photos = [torch.tensor(p).permute(2, 0, 1) / 255 for p in load_sample_images().images]
    generator = torch.Generator().manual_seed(0)
    crops = []
    for k in range(count):
        photo = F.avg_pool2d(photos[k % 2][None], 4)[0]
        top, left = (int(torch.randint(n - 32, (), generator=generator)) for n in photo.shape[1:])
        crops.append(photo[:, top : top + 32, left : left + 32])
    return torch.stack(crops), torch.arange(count) % 10, "crops of scikit-learn's photographs"


def ours(scene: Scene, attack: Optimisation) -> Result:
    """All images side by side."""
    layout = Layout.of(scene.model)
    sent = layout.read(scene.model)
    public = Public(scene.model, layout, loss, SPEC.shape, 10, MEAN, STD, "gradient", 0.1, lambda n: 1)
    seen = [
        Observation(
            torch.cat([t.reshape(-1) for t in scene.gradients(k)]), sent, 1, "update", True, 1, scene.labels[[k]]
        )
        for k in range(len(scene.raw))
    ]
    generators = [torch.Generator().manual_seed(k) for k in range(len(seen))]
    started = cpu_seconds()
    found = attack.reconstruct_many(View("server_operator", public), seen, generators)
    seconds = (cpu_seconds() - started) / len(seen)
    good = [f for f in found if not isinstance(f, AttackFailed)]
    if len(good) < len(found):
        raise RuntimeError(f"{len(found) - len(good)} of {len(found)} attacks failed")
    return Result("privbench", seconds, scene.quality([f.x for f in good]), good[0].engine)


def breaching(scene: Scene, kind: str, iterations: int, weight: float | None) -> Result:
    """breaching's attacker, image after image, with its own settings but for the iterations.

    Args:
        kind: its configuration, ``invertinggradients`` or ``deepleakage``.
        weight: of total variation; ``None`` leaves its own.
    """
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)
    import breaching as peer  # type: ignore[import-not-found]

    overrides = [f"optim.max_iterations={iterations}", f"optim.callback={10 * iterations}", "label_strategy=iDLG"]
    if kind == "deepleakage":
        # Its joint optimisation returns the labels of its random start; the plain attacker is told the right ones.
        overrides = [*overrides, "attack_type=optimization"]
    if weight is not None:
        overrides.append(f"regularization.total_variation.scale={weight}")
    settings = peer.get_attack_config(kind, overrides)
    setup = {"device": torch.device("cpu"), "dtype": torch.float}
    attacker = peer.attacks.prepare_attack(scene.model, nn.CrossEntropyLoss(), settings, setup)

    class Metadata(dict):  # type: ignore[type-arg]
        """What breaching calls metadata: attributes and keys."""

        __getattr__ = dict.__getitem__

    about = Metadata(shape=SPEC.shape, modality="vision", classes=10, mean=MEAN.flatten(), std=STD.flatten())
    found = []
    started = cpu_seconds()
    for k in range(len(scene.raw)):
        torch.manual_seed(k)
        payload = {"parameters": list(scene.model.parameters()), "buffers": [], "metadata": about}
        own = {"num_data_points": 1, "labels": scene.labels[[k]], "local_hyperparams": None}
        data = {"gradients": [g.clone() for g in scene.gradients(k)], "buffers": None, "metadata": own}
        result, _ = attacker.reconstruct([payload], [data], {}, dryrun=False)
        found.append(result["data"].detach())
    seconds = (cpu_seconds() - started) / len(found)
    return Result("breaching", seconds, scene.quality(found), "one after the other")


def cpu_seconds() -> float:
    """Of this process and of those that it started and that ended."""
    return sum(os.times()[:4])


def table(title: str, base: Result, results: list[Result]) -> str:
    """Lines with the ratio of CPU seconds to ``base``'s."""
    lines = [title]
    for r in (base, *results):
        spread = float(r.quality.std()) if len(r.quality) > 1 else 0.0
        lines.append(
            f"  {r.name:<28} {r.seconds:8.2f} CPU-s an image  {base.seconds / r.seconds:6.2f}x  "
            f"{float(r.quality.mean()):6.2f} +- {spread:.2f} dB, median {float(r.quality.median()):.2f}  {r.note}"
        )
    return "\n".join(lines)


def compare(
    title: str,
    base: Callable[[], Result] | None,
    runs: dict[str, Callable[[], Result]],
    ladder: dict[str, Callable[[], Result]] | None = None,
) -> str:
    """Run everything once; without a peer the first of ``runs`` is the base.

    Args:
        ladder: runs of rising effort, of which the first as good as the peer in mean dB is shown, and the one
            before it.
    """
    first = base() if base else None
    done = [replace(run(), name=name) for name, run in runs.items()]
    if first is None:
        return table(title, done[0], done[1:])
    climbed: list[Result] = []
    for name, run in (ladder or {}).items():
        climbed.append(replace(run(), name=name))
        if climbed[-1].quality.mean() >= first.quality.mean():
            climbed[-1] = replace(climbed[-1], note=f"fewest for the peer's dB, {climbed[-1].note}")
            break
    done += climbed[-2:]
    return table(title, first, done)


def rungs(full: int) -> list[int]:
    """Numbers of iterations from a 64th of ``full`` to all, each a fifth more than the one before."""
    return sorted({max(1, round(full / 64 * 2 ** (k / 4))) for k in range(25)})


def main(arguments: list[str] | None = None) -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=4800, help="of Inverting Gradients on LeNet")
    parser.add_argument("--dlg", type=int, default=300, help="iterations of DLG by L-BFGS; 0 leaves it out")
    parser.add_argument("--convnet", type=int, default=100, help="iterations on ConvNet; 0 leaves it out")
    parser.add_argument("--compile", choices=("auto", "never", "always"), default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of the models")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    # Compiled in this process and its children, where it is counted, and compiled anew.
    os.environ |= {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    raw, labels, source = images(options.images)
    # Loaded before any clock starts.
    ours(Scene(make(LeNet(), SPEC, 0), raw[:2], labels[:2]), InvertingGradients(iterations=2, compile="never"))
    peer = find_spec("breaching") is not None
    if not peer:
        print("breaching is not installed: no peer", file=sys.stderr)
    print(f"torch {torch.__version__}, {len(raw)} {source}, one thread, model seed {options.seed}")
    lenet = Scene(make(LeNet(), SPEC, options.seed), raw, labels)
    compile: Compile = options.compile
    full = options.iterations

    def ig(scene: Scene, iterations: int) -> Callable[[], Result]:
        return lambda: ours(scene, InvertingGradients(iterations=iterations, labels="known", compile=compile))

    def theirs(scene: Scene, kind: str, iterations: int, weight: float | None = None) -> Callable[[], Result] | None:
        return (lambda: breaching(scene, kind, iterations, weight)) if peer else None

    runs, ladder = (
        {f"privbench, {n} iterations": ig(lenet, n) for n in numbers}
        for numbers in ([full, max(1, full // 8)], rungs(full))
    )
    peers = theirs(lenet, "invertinggradients", full)
    print(compare(f"LeNet, Inverting Gradients, {full} iterations", peers, runs, ladder), flush=True)
    if options.dlg:
        dlg = {"privbench": lambda: ours(lenet, DLG(iterations=options.dlg, labels="known", compile=compile))}
        outer = max(1, options.dlg // 20)  # torch.optim.LBFGS does 20 iterations a step
        print(
            compare(f"LeNet, DLG, {options.dlg} L-BFGS iterations", theirs(lenet, "deepleakage", outer), dlg),
            flush=True,
        )
    if options.convnet:
        scene = Scene(make(ConvNet(width=16), SPEC, options.seed), raw, labels)
        runs = {"privbench": ig(scene, options.convnet)}
        peers = theirs(scene, "invertinggradients", options.convnet)
        print(compare(f"ConvNet16, Inverting Gradients, {options.convnet} iterations", peers, runs))


if __name__ == "__main__":
    main()
