"""Writing a run's directory: manifest, metrics, checkpoint, artifacts. A killed run resumes from its last round."""

import datetime
import fcntl
import hashlib
import importlib.metadata
import json
import os
import pickle
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from privbench.benchmarks.federation.server import ServerState

SCHEMA = 1
PACKAGES = ("torch", "torchvision", "opacus", "numpy", "hydra-core", "dp-accounting", "privbench")
Rows = Iterable[Mapping[str, Any]]


class Record:
    """One run's directory, open for writing.

    Args:
        path: the directory; made if needed.
    """

    def __init__(self, path: Path):
        self.path = path
        self.manifest: dict[str, Any] = {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run against another process that was asked for the same; waits for it."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def read(self) -> dict[str, Any] | None:
        """The manifest on disk, ``None`` if there is none (or a torn one, which counts as none)."""
        try:
            manifest = json.loads((self.path / "manifest.json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return manifest if isinstance(manifest, dict) and "status" in manifest else None

    def begin(self, manifest: dict[str, Any]) -> ServerState | None:
        """Start or resume, with status ``running``.

        Returns:
            The state after the last finished round, ``None`` for a fresh start. Metrics written after that round's
            checkpoint are cut off, so that a resumed run's file is that of an undisturbed one.
        """
        before = self.read() or {}
        saved = self._load_checkpoint()
        resumed = int(before.get("resumed", 0)) + 1 if saved else 0
        if saved is None:
            (self.path / "metrics.jsonl").write_bytes(b"")
        else:
            with open(self.path / "metrics.jsonl", "r+b") as file:
                file.truncate(saved["metrics_bytes"])
        started = before.get("started") if saved else None
        self.manifest = {
            **manifest,
            # What was said of an earlier run of another revision holds however often this one is cut off.
            "dropped": before.get("dropped") if saved else manifest.get("dropped"),
            "status": "running",
            "error": None,
            "resumed": resumed,
            "started": started or _now(),
            "finished": None,
        }
        (self.path / "traceback.txt").unlink(missing_ok=True)
        self._write_manifest()
        return saved["state"] if saved else None

    def append(self, rows: Rows) -> None:
        """Add metric lines; ``round``, ``client`` and ``adversary`` are null where a row doesn't name them."""
        empty = {"metric": None, "round": None, "client": None, "adversary": None, "value": None}
        lines = [json.dumps({**empty, **row}, allow_nan=False) + "\n" for row in rows]
        with open(self.path / "metrics.jsonl", "a") as file:
            file.writelines(lines)

    def checkpoint(self, state: ServerState) -> None:
        """Save the state and how far the metrics had come, in one atomic step."""
        size = (self.path / "metrics.jsonl").stat().st_size
        target = self.path / "checkpoint.pt"
        temporary = target.with_suffix(".tmp")
        torch.save({"state": state, "metrics_bytes": size}, temporary)
        os.replace(temporary, target)

    def artifact(self, name: str, arrays: Mapping[str, np.ndarray]) -> Path:
        """Store arrays under ``artifacts/<name>.npz``."""
        np.savez_compressed(self.folder / f"{name}.npz", allow_pickle=False, **arrays)
        return self.folder / f"{name}.npz"

    @property
    def folder(self) -> Path:
        """Of artifacts; it exists."""
        folder = self.path / "artifacts"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def attempts(self) -> Path:
        """Where attempts at the round that isn't finished are kept."""
        return self.path / "attempts.json"

    def finish(self, status: str, error: str | None = None, **more: Any) -> None:
        """Close with ``complete``, ``failed`` or ``diverged``."""
        self.manifest.update(status=status, error=error, finished=_now(), **more)
        self._write_manifest()

    @property
    def begun(self) -> bool:
        """Whether a round of an earlier process has begun, as far as files tell."""
        attested = self.path / "artifacts" / "attestation"
        return any(place.exists() for place in (self.attempts, self.path / "checkpoint.pt", attested))

    def refuse(self, manifest: Mapping[str, Any], why: str) -> None:
        """Say in an earlier run's manifest why it isn't gone on with; all else stays as it is."""
        self.manifest = dict(manifest)
        self.finish("failed", why)

    def forget(self) -> None:
        """Drop what an earlier run of the same name left, to run it anew."""
        for name in ("manifest.json", "metrics.jsonl", "checkpoint.pt", "attempts.json", "traceback.txt"):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / "artifacts", ignore_errors=True)

    def _load_checkpoint(self) -> dict[str, Any] | None:
        metrics = self.path / "metrics.jsonl"
        if not (self.path / "checkpoint.pt").exists() or not metrics.exists():
            return None
        try:
            # The file is this suite's own, written beside the record that is being resumed.
            saved = torch.load(self.path / "checkpoint.pt", weights_only=False)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError):
            return None  # torn, as a full disk or a power cut leaves it: the run starts afresh
        return saved if metrics.stat().st_size >= saved["metrics_bytes"] else None

    def _write_manifest(self) -> None:
        write_json(self.path / "manifest.json", self.manifest)


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one atomic step."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@lru_cache(maxsize=1)
def revision() -> dict[str, Any] | None:
    """What code this is, so that runs of different code are not mixed.

    Returns:
        ``commit``, ``dirty`` and, if dirty, ``diff`` (digest of the uncommitted changes) of the checkout; of an
        installed wheel ``commit`` None and ``version``; ``None`` if it is neither.
    """
    here = Path(__file__).resolve()

    def git(*arguments: str) -> bytes | None:
        try:
            command = ["git", "-C", str(here.parent), *arguments]
            done = subprocess.run(command, capture_output=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    # A virtual environment inside somebody's repository must not take that repository's commit for ours.
    tracked = git("ls-files", "--error-unmatch", here.name) is not None
    commit = git("rev-parse", "HEAD") if tracked else None
    if commit is None:
        try:
            return {"commit": None, "version": importlib.metadata.version("privbench"), "dirty": False}
        except importlib.metadata.PackageNotFoundError:
            return None
    # Without the user's own settings of diff, so that equal changes have equal digests.
    changes = git("diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv", "--no-color")
    found: dict[str, Any] = {"commit": commit.decode().strip(), "dirty": changes != b""}
    if found["dirty"]:
        found["diff"] = hashlib.sha256(changes or b"").hexdigest()[:12]
    return found


def environment() -> tuple[dict[str, str], dict[str, Any]]:
    """Versions of the packages that make numbers, and the machine."""
    packages = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    machine = {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count()}
    return packages, machine


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
