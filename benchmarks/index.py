"""A sweep's index of its runs: written when it starts, brought up to date and closed with one table when it ends."""

import datetime
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from privbench.benchmarks.sweep import Jobs


class Sweep(Callback):
    """Hydra's callback around a sweep, whatever launches its jobs.

    Args:
        report: ``false`` where more of the same sweep follows.
    """

    def __init__(self, report: bool = True) -> None:
        self.report = report

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        if self.report and close(Path(config.results_dir) / str(config.name)):
            raise SystemExit(1)


def close(folder: Path) -> int:
    """Bring a sweep's index up to date and print its table.

    Returns:
        1 if not all of its runs are there and complete, else 0.
    """
    from rich.console import Console

    from privbench.benchmarks.results.report import report

    refresh(folder)
    return report(folder, Console()).status


def unfinished(folder: Path) -> list[str]:
    """The runs of a sweep that haven't ended, with what they were asked for and how far they are."""
    runs = json.loads((folder / "sweep.json").read_text())["runs"]
    open_ended = ("planned", "missing", "running")
    return [f"{r['id']}  {' '.join(r['overrides'])}  {r['status']}" for r in runs if r["status"] in open_ended]


def write_index(jobs: Jobs) -> Path:
    """Write ``sweep.json`` of a sweep about to start.

    Returns:
        The sweep's folder.
    """
    from privbench.benchmarks.results.record import write_json

    folder = jobs.results / jobs.name
    folder.mkdir(parents=True, exist_ok=True)
    ids = sorted(job.id for job in jobs.jobs)
    write_json(
        folder / "sweep.json",
        {
            "schema": 1,
            "id": sha256(" ".join(ids).encode()).hexdigest()[:12],
            "name": jobs.name,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "runs": [
                {"path": f"../runs/{job.id}", "id": job.id, "overrides": job.overrides, "status": "planned"}
                for job in jobs.jobs
            ],
        },
    )
    return folder


def refresh(folder: Path) -> None:
    """Bring the statuses in a sweep's index up to date."""
    from privbench.benchmarks.results.record import Record, write_json

    index = json.loads((folder / "sweep.json").read_text())
    for entry in index["runs"]:
        manifest = Record(folder / entry["path"]).read()
        entry["status"] = manifest["status"] if manifest else "missing"
    write_json(folder / "sweep.json", index)
