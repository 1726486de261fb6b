"""What becomes of an earlier run of the same name: it is kept, gone on with, started anew, or not to be forgotten."""

from typing import Any

from privbench.benchmarks.experiment import Prepared
from privbench.benchmarks.results.record import Record, revision
from privbench.defenses.accounting.guarantee import fresh


def again(prepared: Prepared, manifest: dict[str, Any]) -> bool:
    """Whether to drop what there is of a run, however it ended, and do it from its first round."""
    rerun, stale = prepared.experiment.rerun, manifest.get("revision") != revision()
    finished = manifest["status"] in ("complete", "diverged")
    # What another revision began isn't continued: its numbers would be of two programs.
    return rerun == "all" or (stale and (not finished or (rerun == "stale" and not fresh(prepared.federation.plan))))


def owed(prepared: Prepared, record: Record) -> bool:
    """Whether a run that isn't gone on with may have released something with noise from the system."""
    return fresh(prepared.federation.plan) and prepared.experiment.rerun != "all" and record.begun


def note(prepared: Prepared, manifest: dict[str, Any]) -> str | None:
    """What is worth knowing of a run that is kept."""
    if manifest["status"] == "diverged":
        return f"{manifest['error']}; rerun=all repeats it"
    if manifest.get("revision") != revision():
        how = "all" if fresh(prepared.federation.plan) else "stale"
        return f"made by another revision ({_made_by(manifest)}); rerun={how} repeats it"
    return None


def dropped(manifest: dict[str, Any]) -> str | None:
    """What is to be said of an unfinished run that is not gone on with, without having been asked for."""
    if manifest["status"] in ("complete", "diverged") or manifest.get("revision") == revision():
        return None
    return f"another revision ({_made_by(manifest)}) had begun it"


def _made_by(manifest: dict[str, Any]) -> str:
    found = manifest.get("revision") or {}
    return (found.get("commit") or found.get("version") or "unknown")[:12]
