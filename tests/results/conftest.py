"""Fake run directories in the format of docs/results.md. The numbers are made up and mean nothing."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privbench.benchmarks.build import canonical

DEFENSES: dict[str, dict[str, Any]] = {
    "none": {},
    "clip_only": {"epsilon": None, "clip": 1.0},
    "dp_local": {"epsilon": 8.0, "delta": 1e-3, "unit": "record"},
    "dp_central": {"epsilon": 4.0, "delta": 1e-2, "unit": "client"},
    "secure_aggregation": {"hidden": True},
    "krum": {},
}


class Fake:
    """Writes runs below ``root``; every number is a formula of the arguments."""

    def __init__(self, root: Path):
        self.root = root
        (root / "runs").mkdir(parents=True, exist_ok=True)

    def run(
        self,
        defense: str = "none",
        poisoning: str = "none",
        seed: int = 0,
        accuracy: float = 0.8,
        rounds: int = 5,
        settings: Mapping[str, Any] | None = None,
        leakage: float | str = 15.0,
        images: int = 0,
        signals: bool = False,
        asr: float | None = 0.9,
        **manifest: Any,
    ) -> Path:
        """One run directory. ``leakage``: a PSNR (an MSE of ``signals``) or a status; ``manifest`` overrides fields."""
        task = str(manifest.get("task", "mnist5k"))
        chosen = self._settings(defense, poisoning, task, settings or {})
        id = f"{hashlib.sha256(canonical(chosen).encode()).hexdigest()[:12]}-s{seed}"
        path = self.root / "runs" / id
        (path / "artifacts").mkdir(parents=True)
        choices = {"task": task, "model": "small_cnn", "federation": "fedavg", "defense": defense}
        choices |= {"leakage": "inverting_gradients", "poisoning": poisoning, "experiment": "quickstart"}
        written = {
            "schema": 1,
            "id": id,
            "settings": chosen,
            "config": {"task": {"classes": 10}},
            "seed": seed,
            "choices": choices,
            "revision": {"commit": "a" * 40, "dirty": False},
            "packages": {},
            "machine": {},
            "assurance": "none",
            "isolation": "same_host",
            "reproducible": True,
            "status": "complete",
            "error": None,
            "privacy": _statements(DEFENSES.get(defense, {})),
            "started": "2025-01-01T00:00:00Z",
            "finished": "2025-01-01T00:01:00Z",
            "rounds": rounds,
        } | {k: v for k, v in manifest.items() if k != "task"}
        (path / "manifest.json").write_text(json.dumps(written))
        lines = _training(accuracy, rounds, seed, poisoning, asr) + _leakage(leakage, signals)
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if images and not isinstance(leakage, str):
            _artifact(path / "artifacts", images, leakage, signals)
        return path

    def sweep(self, *runs: Path, name: str = "quickstart", more: tuple[dict[str, Any], ...] = ()) -> Path:
        """A sweep directory with an index of ``runs`` and of ``more`` entries as they are."""
        path = self.root / name
        path.mkdir()
        entries = [{"path": f"../runs/{r.name}", "id": r.name, "overrides": [], "status": "complete"} for r in runs]
        index = {"schema": 1, "id": "0123", "name": name, "created": "2025-01-01T00:00:00Z", "runs": [*entries, *more]}
        (path / "sweep.json").write_text(json.dumps(index))
        return path

    @staticmethod
    def _settings(defense: str, poisoning: str, task: str, more: Mapping[str, Any]) -> dict[str, Any]:
        chosen: dict[str, Any] = {
            "task": {"_target_": f"privbench.fake.{task}"},
            "leakage": {"_target_": "privbench.IG"},
        }
        if defense != "none":
            chosen["defense"] = {"local": {"_target_": f"privbench.fake.{defense}"}}
        chosen["poisoning"] = None if poisoning == "none" else {"_target_": f"privbench.fake.{poisoning}"}
        for path, value in more.items():
            *parents, leaf = path.split(".")
            inner = chosen
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[leaf] = value
        return chosen


def _statements(plan: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    if plan.get("unit") is None:
        return None
    adversaries = ("server_operator", "model_recipient") if plan["unit"] == "record" else ("model_recipient",)
    fields = {"unit": plan["unit"], "epsilon": plan["epsilon"], "delta": plan["delta"], "simulated": True}
    return [{**fields, "adversary": a} for a in adversaries]


def line(metric: str, value: float | None, **more: Any) -> dict[str, Any]:
    return {"metric": metric, "round": None, "client": None, "adversary": None, "value": value, **more}


def _training(accuracy: float, rounds: int, seed: int, poisoning: str, asr: float | None) -> list[dict[str, Any]]:
    lines = []
    for r in range(1, rounds + 1):
        reached = accuracy * (1 - 0.8 * 2.0**-r) + 0.004 * seed
        lines.append(line("accuracy", reached, round=r))
        lines.append(line("balanced_accuracy", reached - 0.001, round=r))
        lines.append(line("auc", min(1.0, reached + 0.05), round=r))
        lines.append(line("loss", 2 - reached, round=r))
        lines.append(line("round_seconds", 0.5 + 0.01 * r, round=r))
        if poisoning == "none":
            lines.append(line("false_trigger_rate", 0.02 + 0.001 * seed, round=r))
        elif asr is not None:
            lines.append(line("asr", asr * (1 - 2.0**-r) + 0.01 * seed, round=r))
    return lines


def _leakage(psnr: float | str, signals: bool) -> list[dict[str, Any]]:
    where = {"round": 1, "client": 0, "adversary": "server_operator"}
    if signals:
        missing = {"value": None, "status": psnr, "reason": "nothing is seen"} if isinstance(psnr, str) else {}
        value = None if isinstance(psnr, str) else psnr
        return [line("mse", value, **where) | missing, line("mse_mean", 1.25, **where)]
    if isinstance(psnr, str):
        reason = "no update is visible" if psnr == "not_applicable" else "the attack ran out of memory"
        return [line(m, None, status=psnr, reason=reason, **where) for m in ("psnr_db", "ssim")]
    lines = []
    for client in (0, 1):
        where["client"] = client
        lines.append(line("mse", 10 ** (-psnr / 10), **where))
        lines += [line("psnr_db", psnr + client, **where), line("ssim", psnr / 40, **where)]
        for name, value in (
            ("grey", 6.0),
            ("mean_colour", 9.5),
            ("mosaic", 8.0),
            ("other_image", 7.0),
            ("class_mean", 9.0),
        ):
            lines += [line(f"psnr_db_{name}", value, **where), line(f"ssim_{name}", value / 60, **where)]
        found = psnr + client
        lines += [line(f"psnr_db_{name}", found + more, **where) for name, more in (("median", -0.5), ("worst", -3))]
        lines += [line(f"psnr_db_{name}", found + more, **where) for name, more in (("best", 2), ("oracle", 1))]
        lines += [line(f"success_rate_{t}db", float(found >= t), **where) for t in (20, 25)]
        lines += [line("psnr_db_same_label", 7.5, **where), line("label_accuracy_majority", 0.25, **where)]
        lines += [line("identification_rank", 1.0 + client, **where), line("identified", 1.0 - client, **where)]
        lines += [line("identified_chance", 0.1, **where), line("identification_rank_chance", 5.5, **where)]
        lines.append(line("label_accuracy", 0.5, labels="from_gradient", **where))
    return lines


def _artifact(path: Path, images: int, psnr: float, signals: bool) -> None:
    """Blobs, and the same with noise of the mean squared error that ``psnr`` (dB) stands for; or waves with noise."""
    rng = np.random.default_rng(0)
    if signals:
        waves = np.sin(np.linspace(0, 6, 50) + rng.uniform(0, 6, (images, 1, 1)))
        arrays = {"originals": waves, "reconstructions": waves + 0.1, "guess_class_mean": 0 * waves}
        np.savez(path / "leakage_r1_c0_server_operator.npz", **arrays)
        return
    rows, columns = np.mgrid[0:28, 0:28]
    for client in (0, 1):
        centres = rng.uniform(8, 20, (images, 2))
        blobs = [np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 30) for y, x in centres]
        originals = np.stack(blobs)[:, None].astype(np.float32)
        noisy = (originals + rng.normal(0, 10 ** (-psnr / 20), originals.shape)).clip(0, 1).astype(np.float32)
        measured = 10 * np.log10(1 / ((noisy - originals) ** 2).mean((1, 2, 3)))
        file = path / f"leakage_r1_c{client}_server_operator.npz"
        guesses = {"guess_class_mean": 0 * originals + 0.5, "guess_mosaic": originals**2}
        np.savez(file, originals=originals, reconstructions=noisy, psnr_db=measured, **guesses)


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """A writer of fake runs below an empty results root."""
    return Fake(tmp_path / "results")


@pytest.fixture
def quickstart(fake: Fake) -> Callable[..., Path]:
    """``quickstart(seeds)``: a sweep of six defenses, with and without a poisoner."""

    def write(seeds: int = 1) -> Path:
        runs = []
        numbers = {"none": (0.93, 24.0), "clip_only": (0.92, 18.0), "dp_local": (0.81, 9.0), "dp_central": (0.85, 20.0)}
        numbers |= {"secure_aggregation": (0.93, "not_applicable"), "krum": (0.90, 22.0)}
        for defense, (accuracy, psnr) in numbers.items():
            for poisoning in ("none", "patch"):
                for seed in range(seeds):
                    more = {"accuracy": accuracy, "leakage": psnr, "images": 4, "rounds": 12, "asr": accuracy**3}
                    runs.append(fake.run(defense, poisoning, seed, **more))
        return fake.sweep(*runs)

    return write
