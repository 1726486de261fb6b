"""What an inversion found, measured against the truth where that is known."""

from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from torch import Tensor

from privbench.attacks.leakage.attack import Attack, Reconstruction
from privbench.benchmarks.build import describe
from privbench.benchmarks.federation.view import Public
from privbench.benchmarks.inversion.diagnosis import Diagnosis
from privbench.benchmarks.measures import images
from privbench.benchmarks.measures.comparison import compare, is_image
from privbench.benchmarks.measures.guesses import controls
from privbench.benchmarks.tasks.task import Split

PACKAGES = ("privbench", "torch", "numpy")


@dataclass(frozen=True)
class Inversion:
    """What an attack made of a dump.

    Args:
        x: ``(B, *shape)``, as the model takes them; in the order of the true inputs where they were given.
        y: ``(B,)`` labels used or found, in the same order; -1 where no reconstruction was left for a true input.
        reconstruction: as the attack returned it, all restarts included.
        attack: that was made.
        public: what it knew.
        records: how many were sought.
        diagnosis: of the dump; ``None`` without true inputs.
        truth: the true inputs, ``None`` where they weren't given.
        metrics: against the truth, those of :meth:`privbench.benchmarks.measures.leakage.Leakage.measure`: images have
            PSNR (dB), SSIM and MSE of raw pixels, beside what trivial guesses reach (``psnr_db_mosaic``, ...); signals
            and tables have MSE in standardised units and ``mse_mean``. Empty without truth.
        seconds: of the attack.
        notes: what a reader of the numbers has to know.
    """

    x: Tensor
    y: Tensor
    reconstruction: Reconstruction
    attack: Attack
    public: Public
    records: int
    diagnosis: Diagnosis | None
    truth: Split | None
    metrics: dict[str, float]
    seconds: float
    notes: tuple[str, ...]

    @property
    def raw(self) -> Tensor:
        """:attr:`x` before standardisation, ``x * std + mean``; images are clamped to [0, 1]."""
        return raw(self.public, self.x)

    @property
    def report(self) -> dict[str, Any]:
        """All but the records themselves, as JSON takes it."""
        found = self.reconstruction
        return {
            "schema": 1,
            "status": "complete",
            "attack": describe(self.attack),
            "needs": sorted(self.attack.needs),
            "records": self.records,
            "labels": self.y.tolist(),
            "gradient_objective": _finite(found.objective),
            "engine": found.engine,
            "restart": found.restart,
            "gradient_objectives": [_finite(v) for v in found.objectives],
            "attack_seconds": self.seconds,
            "metrics": {name: _finite(value) for name, value in self.metrics.items()},
            "diagnosis": None if self.diagnosis is None else asdict(self.diagnosis),
            "notes": list(self.notes),
            "versions": versions(),
        }


def measure(public: Public, found: Reconstruction, truth: Split) -> dict[str, float]:
    """A reconstruction against the truth, after one-to-one matching, and what trivial guesses reach."""
    values, _ = compare(public, found, truth)
    guessed, _ = controls(public, truth, None, None, max(len(truth), len(found.x)))
    return {**values, **guessed}


def raw(public: Public, x: Tensor) -> Tensor:
    """``x * std + mean``, clamped to [0, 1] for images."""
    return images.to_raw(x, public.mean, public.std) if is_image(public) else x * public.std + public.mean


def versions() -> dict[str, str]:
    """Versions of what numbers depend on."""

    def of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    return {package: of(package) for package in PACKAGES}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
