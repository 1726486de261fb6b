"""Reconstructions against the truth, and against what one has without any attack.

Images are compared raw, clamped to [0, 1]; signals and tables as they are, in units of the standard deviation.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from privbench.attacks.leakage.attack import AttackFailed, Reconstruction
from privbench.benchmarks.federation.view import Public
from privbench.benchmarks.measures import images, perceptual
from privbench.benchmarks.measures.identification import chance, identification

THRESHOLDS = (20.0, 25.0)
"""PSNR in dB from which an image counts as reconstructed: a root mean squared error of 0.1, and of 0.056.

Trivial guesses of CIFAR-10 images reach 17 dB (their own 4x4 mosaic).
"""

Arrays = dict[str, np.ndarray]


class Records(Protocol):
    """The truth, or others: a :class:`~privbench.benchmarks.tasks.task.Split`."""

    @property
    def x(self) -> Tensor: ...

    @property
    def y(self) -> Tensor: ...


def is_image(public: Public) -> bool:
    """Whether inputs are images ``(C, H, W)``, whose raw range is [0, 1]."""
    return len(public.shape) == 3


def comparable(public: Public, x: Tensor) -> Tensor:
    """Standardised ``x`` in the space of comparison."""
    return images.to_raw(x, public.mean, public.std) if is_image(public) else x


def check(public: Public, found: Reconstruction) -> None:
    """Refuse what isn't a reconstruction, whichever attack returned it.

    Raises:
        AttackFailed: for records of another shape, labels of another number, NaN or infinity.
    """
    if found.x.shape[1:] != public.shape or len(found.x) == 0:
        raise AttackFailed(f"the attack returned records of shape {tuple(found.x.shape)}, not (n, *{public.shape})")
    if found.y.shape != found.x.shape[:1]:
        raise AttackFailed(f"the attack returned {len(found.x)} records and labels of shape {tuple(found.y.shape)}")
    if not torch.isfinite(found.x).all():
        raise AttackFailed("the attack returned NaN or infinite values")


def compare(
    public: Public,
    found: Reconstruction,
    truth: Records,
    distractors: Records | None = None,
    peers: Records | None = None,
    thresholds: tuple[float, ...] = THRESHOLDS,
    strangers: Records | None = None,
) -> tuple[dict[str, float], Arrays]:
    """Values of a reconstruction against the truth, and the arrays behind them; see :meth:`.Leakage.measure`.

    True records that no reconstruction was left for are compared with grey (images) or the training mean (others), and
    come last in their identification. ``strangers`` are other clients' records beside the distractors, for the level at
    chance.
    """
    original, fill = comparable(public, truth.x), 0.5 if is_image(public) else 0.0
    i, j = images.match(comparable(public, found.x), original)
    guessed = torch.full_like(truth.y, -1)
    guessed[j] = found.y[i].to(guessed)
    x = images.aligned(comparable(public, found.x), original, fill)
    kept = [c for c in found.candidates if torch.isfinite(c).all()]
    restarts = [x, *(images.aligned(comparable(public, c), original, fill) for c in kept)]
    arrays = {"labels": truth.y.numpy(), "labels_found": guessed.numpy()}
    arrays |= {"originals": original.numpy(), "reconstructions": x.numpy(), "mse": images.mse(x, original).numpy()}
    values = errors(x, original, restarts)
    if is_image(public):
        psnr = images.psnr(x, original)
        arrays["psnr_db"] = psnr.numpy()
        values |= _fidelity(x, original, restarts, thresholds)
    values |= {"label_accuracy": label_accuracy(found.y, truth.y)}
    if distractors is not None and len(distractors.y):
        lost = torch.ones(len(original), dtype=torch.bool)
        lost[j] = False
        others = comparable(public, distractors.x)
        further = others[:0] if strangers is None else comparable(public, strangers.x)
        values |= identification(x, original, others, lost)
        values |= chance(original, others, further, len(found.x))
    values |= _same_label(public, comparable(public, found.x), truth.y, distractors if peers is None else peers, fill)
    return values, arrays


def errors(x: Tensor, original: Tensor, restarts: list[Tensor]) -> dict[str, float]:
    """The squared error over a batch, and that of the best restart by the truth."""
    found = images.mse(x, original)
    values = {"mse": found.mean(), "mse_median": found.median(), "mse_worst": found.max(), "mse_best": found.min()}
    oracle = min(float(images.mse(r, original).mean()) for r in restarts)
    return {**{k: float(v) for k, v in values.items()}, "mse_oracle": oracle}


def _fidelity(x: Tensor, original: Tensor, restarts: list[Tensor], thresholds: tuple[float, ...]) -> dict[str, float]:
    psnr = images.psnr(x, original)
    values = {
        "psnr_db": float(psnr.mean()),
        "psnr_db_median": float(psnr.median()),
        "psnr_db_worst": float(psnr.min()),
        "psnr_db_best": float(psnr.max()),
        "psnr_db_oracle": max(float(images.psnr(r, original).mean()) for r in restarts),
        "psnr_exact": int((psnr >= images.CAP_DB).sum()),
        "ssim": float(images.ssim(x, original).mean()),
    }
    values |= {success(t): float((psnr >= t).double().mean()) for t in thresholds}
    distance = perceptual.lpips(x, original)
    return values if distance is None else {**values, "lpips": float(distance.mean())}


def success(threshold: float) -> str:
    """The name of the metric: ``success_rate_20db``."""
    return f"success_rate_{threshold:g}db"


def label_accuracy(found: Tensor, truth: Tensor) -> float:
    """How many labels two multisets share, ``(m,)`` and ``(n,)``, by the size of the larger one: more guesses than
    there are labels aren't a better attack."""
    shared = sum(min(int((found == c).sum()), int((truth == c).sum())) for c in truth.unique())
    return shared / max(len(found), len(truth))


def of_label(records: Records | None, label: Tensor) -> Tensor:
    """The inputs of all ``records`` with one label, ``(k, *shape)``."""
    return torch.zeros(0) if records is None else records.x[records.y == label]


def _same_label(public: Public, found: Tensor, labels: Tensor, peers: Records | None, fill: float) -> dict[str, float]:
    """All reconstructions ``(m, ...)`` against other clients' records of the true labels, matched as to the truth.

    By symmetry it is what the same attack on other records of those labels scores on this truth: how much of a score is
    the class and not the record. A mean over batches that the peers make with the same labels; each peer of a label
    is in one of them. Nothing unless there is such a record for every label of the batch.
    """
    if peers is None:
        return {}
    others = {int(c): comparable(public, of_label(peers, c)) for c in labels.unique()}
    if not all(len(o) for o in others.values()):
        return {}
    pairs = [(images.aligned(found, batch, fill), batch) for batch in _batches(others, labels)]

    def mean(measure: Any) -> float:
        return float(torch.stack([measure(a, b).mean() for a, b in pairs]).mean())

    values = {"mse_same_label": mean(images.mse)}
    if is_image(public):
        values |= {"psnr_db_same_label": mean(images.psnr), "ssim_same_label": mean(images.ssim)}
    return values


def _batches(others: dict[int, Tensor], labels: Tensor) -> Iterator[Tensor]:
    """Batches of ``labels`` from ``others`` by label, as many as it takes to have each of them once.

    A label with too few of them begins anew.
    """
    times = {c: int((labels == c).sum()) for c in others}
    for number in range(max(-(-len(o) // times[c]) for c, o in others.items())):
        batch = torch.empty(len(labels), *next(iter(others.values())).shape[1:])
        for c, o in others.items():
            batch[labels == c] = o[(number * times[c] + torch.arange(times[c])) % len(o)]
        yield batch
