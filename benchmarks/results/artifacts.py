"""What attacks recovered, as runs keep it: ``artifacts/leakage_r<round>_c<client>_<adversary>.npz``."""

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from privbench.benchmarks.results.read import MalformedError
from privbench.benchmarks.results.runs import Run
from privbench.benchmarks.results.style import slug

NAME = re.compile(r"leakage_r(\d+)_c(-?\d+)_(.+)\.npz")
CAP_DB = 100.0
"""PSNR of an exact match, as the measure has it."""


@dataclass(frozen=True)
class Recovered:
    """Records beside what was made of them, over the victims of one run and adversary.

    Args:
        kind: what the records are.
        originals, reconstructions: ``(n, *shape)``: images raw in [0, 1], signals ``(n, channels, samples)`` and tables
            ``(n, features)`` in standard deviations.
        guesses: by name, likewise; trivial guesses of the same records.
        features: names of a table's features, or none.
    """

    kind: Literal["image", "signal", "table"]
    originals: np.ndarray
    reconstructions: np.ndarray
    guesses: Mapping[str, np.ndarray]
    features: tuple[str, ...] = ()

    def score(self, x: np.ndarray) -> np.ndarray:
        """Of each of ``x``, ``(n,)``: PSNR in dB of images, mean squared error of other records."""
        error = ((x.astype(np.float64) - self.originals) ** 2).reshape(len(x), -1).mean(1)
        return np.minimum(-10 * np.log10(np.maximum(error, 1e-300)), CAP_DB) if self.kind == "image" else error


def recovered(run: Run, adversary: str, most: int) -> Recovered | None:
    """The first ``most`` records in order of round and client, never the best; ``None`` without any of one shape.

    Raises:
        MalformedError: if an artifact isn't what its name says.
    """
    named = ((p, NAME.fullmatch(p.name)) for p in (run.path / "artifacts").glob("leakage_*.npz"))
    found = [(int(m[1]), int(m[2]), p) for p, m in named if m is not None and slug(m[3]) == slug(adversary)]
    parts = [_read(p) for *_, p in sorted(found)]
    if not parts or any(
        (p.kind, p.originals.shape[1:]) != (parts[0].kind, parts[0].originals.shape[1:]) for p in parts
    ):
        return None
    names = [n for n in parts[0].guesses if all(n in p.guesses for p in parts)]
    joined = [np.concatenate([getattr(p, a) for p in parts])[:most] for a in ("originals", "reconstructions")]
    guesses = {n: np.concatenate([p.guesses[n] for p in parts])[:most] for n in names}
    return Recovered(parts[0].kind, joined[0], joined[1], guesses, parts[0].features)


def _read(path: Path) -> Recovered:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        originals, found = arrays["originals"], arrays["reconstructions"]
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise MalformedError(path, 1, f"not an archive of originals and reconstructions ({error})") from None
    guesses = {n.removeprefix("guess_"): a for n, a in arrays.items() if n.startswith("guess_")}
    if any(a.shape != originals.shape for a in (found, *guesses.values())):
        raise MalformedError(path, 1, "originals, reconstructions and guesses differ in shape")
    kinds: dict[int, Literal["image", "signal", "table"]] = {4: "image", 3: "signal", 2: "table"}
    if originals.ndim not in kinds:
        raise MalformedError(path, 1, f"records of shape {originals.shape[1:]} are no images, signals or tables")
    features = tuple(str(f) for f in arrays.get("features", ()))
    if features and len(features) != originals.shape[-1]:
        raise MalformedError(path, 1, f"{len(features)} features named, records have {originals.shape[-1]}")
    return Recovered(kinds[originals.ndim], originals, found, guesses, features)
