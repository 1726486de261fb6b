"""Taking a record: detect, fingerprint, run every case of every workload, bind the whole to the guest."""

import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from privbench.benchmarks.build import ConfigError, build, conform, describe, require
from privbench.benchmarks.overhead import detect, fingerprint, load, proof, timing
from privbench.benchmarks.overhead.record import Record, key
from privbench.benchmarks.overhead.schema import SCHEMA
from privbench.benchmarks.overhead.workloads.workload import Bench, Case, Workload
from privbench.defenses.tee.platforms.platform import Platform, Unavailable

BUSY, STOLEN = 0.1, 0.02
"""Shares of the machine's processor time, of other processes and of the host, from which a measurement is doubted."""


@dataclass(frozen=True)
class Recording:
    """What is recorded.

    Args:
        workloads: by name.
        set: the name of the set that they are of.
        arm: what this machine is to be called: ``plain``, ``snp``. Your word; what protects it is detected.
        repeats, seconds, warmup: of :class:`~privbench.benchmarks.overhead.timing.StopRule`.
        cpus: processors to use; ``None``: all that this process may use.
        scratch: folder for files that workloads write, on the disk that is to be timed; ``None``: the system's.
        platform: who is asked for a report over the record: ``auto`` asks SEV-SNP where there is a sign of it,
            ``sev_snp`` insists, ``software`` emulates one and proves nothing, ``none`` asks nobody.
        network: whether AMD's key service may be asked for certificates.
        trusted_targets: your own packages that ``_target_`` may name.
    """

    workloads: Mapping[str, Workload]
    set: str = "mine"
    arm: str = "unnamed"
    repeats: int = 10
    seconds: float = 10.0
    warmup: int = 2
    cpus: tuple[int, ...] | None = None
    scratch: str | None = None
    platform: Literal["auto", "sev_snp", "software", "none"] = "auto"
    network: bool = False
    trusted_targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(bool(self.workloads), "workload", [], "one workload or more")
        require(bool(self.arm.strip()), "arm", self.arm, "a name such as plain or snp")
        for name, workload in self.workloads.items():
            _check_settings(name, workload)
        _ = self.rule
        allowed = _allowed()
        if self.cpus is not None:
            fits = bool(self.cpus) and set(self.cpus) <= set(allowed) and len(set(self.cpus)) == len(self.cpus)
            require(fits, "cpus", self.cpus, f"some of {list(allowed)}, each once")
        if self.scratch is not None:
            require(Path(self.scratch).is_dir(), "scratch", self.scratch, "a folder that is there")

    @property
    def rule(self) -> timing.StopRule:
        return timing.StopRule(self.repeats, self.seconds, self.warmup)


def _check_settings(name: str, workload: Any) -> None:
    """What can't be written down would be found out when all is measured."""
    hint = "a dataclass whose fields are numbers, names, and lists and mappings of these"
    try:
        require(is_dataclass(workload), f"workload.{name}", type(workload).__name__, hint)
        json.dumps(describe(workload), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise error if isinstance(error, ConfigError) else ConfigError(f"workload.{name}", str(error), hint) from None


Told = Callable[[dict[str, Any]], object]


def record(what: Recording, told: Told = lambda _: None, root: Path = fingerprint.ROOT) -> tuple[Record, str | None]:
    """Take one; with it, what went wrong: cases that failed, a report that was asked for and not to be had.

    Args:
        what: to record.
        told: each measurement when it was taken.
        root: of the machine's ``/dev``, ``/proc`` and ``/sys``; workloads run where this process runs.

    Raises:
        ConfigError: two cases have one name.
        Unavailable: ``platform`` insists on a report and there is none; nothing was timed then.
    """
    signs = detect.signs(root)
    machine = fingerprint.machine(root, Path(what.scratch or tempfile.gettempdir()))
    with _platform(what, signs) as platform:
        signs = [_asked(platform), *signs]
        if what.platform in ("sev_snp", "software") and not signs[0]["found"]:
            raise Unavailable(signs[0]["says"])
        before = load.read(root)
        measurements = _measured(what, machine, told)
        made: Record = {
            "schema": SCHEMA,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "arm": what.arm,
            "boot": fingerprint.boot(root),
            "set": what.set,
            "stop_rule": {"warmup": what.warmup, "repeats": what.repeats, "seconds": what.seconds},
            "machine": machine,
            "packages": fingerprint.packages(),
            "signs": signs,
            "load": load.between(before, load.read(root), root),
            "measurements": measurements,
            "evidence": None,
        }
        faults = [key(one) for one in measurements if (one["reason"] or "").startswith(timing.FAILED)]
        said = [f"{', '.join(faults)} failed"] if faults else []
        if platform and not signs[0]["found"]:
            said.append(f"its protection isn't proven: {signs[0]['says']}")
        try:
            made = proof.bind(made, platform) if signs[0]["found"] and platform else made
        except Unavailable as error:  # hours of measurement aren't thrown away for it
            said.append(f"there is no report: {error}")
        return made, "; ".join(said) or None


def _measured(what: Recording, machine: dict[str, Any], told: Told) -> list[dict[str, Any]]:
    levels = {c["level"] for c in machine["cpu"]["caches"]}
    caches = {level: size for level in levels if (size := fingerprint.cache(machine, level))}
    origin, taken, seen = time.perf_counter_ns(), [], set[str]()
    with tempfile.TemporaryDirectory(prefix="privbench-overhead-", dir=what.scratch) as scratch:
        bench = Bench(Path(scratch), what.cpus or _allowed(), caches, machine["place"]["scratch_filesystem"])
        for name, workload in what.workloads.items():
            for case in workload.cases(bench):
                made = {**_named(name, workload, case, bench.cpus), "warmup": what.warmup}
                require(key(made) not in seen, f"workload.{name}", key(made), "cases of different names")
                seen.add(key(made))
                made |= timing.take(case, what.rule, bench.cpus, origin)
                made["doubts"] = [*case.doubts, *_doubts(made, case)]
                taken.append(made)
                told(made)
                for left in bench.scratch.iterdir():
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
    return taken


def _named(name: str, workload: Workload, case: Case, cpus: tuple[int, ...]) -> dict[str, Any]:
    return {
        "workload": name,
        "case": case.name,
        "settings": describe(workload),
        "ablation": case.ablation,
        "work": {"amount": case.amount, "unit": case.unit},
        "calls": case.calls,
        "threads": case.threads,
        "pinned": [*cpus[-case.threads :]],
    }


def _doubts(measurement: dict[str, Any], case: Case) -> list[str]:
    found, during = [], measurement["load"] or {}
    others, steal = during.get("others"), during.get("steal")
    if others is None and case.shared:
        found.append("its caches and memory may have been shared: it was too short, or /proc/stat says nothing")
    if others is not None and others > BUSY:
        found.append(f"other processes took {others:.0%} of the machine while it ran")
        if case.shared:
            found.append("its caches and memory were shared with them: this time isn't credible")
    if steal is not None and steal > STOLEN:
        found.append(f"the host kept {steal:.0%} of the processors' time while it ran")
    return found


def _asked(platform: Platform | None) -> dict[str, Any]:
    """The strongest sign: a report over a fresh challenge, verified. The record's own is verified by who reads it."""
    sign = {"name": "attestation report", "strength": "proof", "found": None, "says": "nobody was asked for one"}
    if platform is None:
        return sign
    probe: Record = {"challenge": secrets.token_hex(32), "evidence": None}
    try:
        found = proof.proven(proof.bind(probe, platform))
    except Unavailable as error:
        return {**sign, "found": False, "says": f"no report: {error}"}
    return {**sign, "found": found.assurance != "none", "says": f"{found.assurance}: {found.reason}"}


@contextmanager
def _platform(what: Recording, signs: list[dict[str, Any]]) -> Iterator[Platform | None]:
    hinted = any(s["found"] and "SEV-SNP" in s["says"] and s["strength"] != "capability" for s in signs)
    if what.platform == "sev_snp" or (what.platform == "auto" and hinted):
        from privbench.defenses.tee.platforms.sev_snp import SEVSNP

        yield SEVSNP(network=what.network)
    elif what.platform == "software":
        yield _Emulated()
    else:
        yield None


class _Emulated:
    """A software platform in this very process: its key is beside the record, so that it shows nothing at all."""

    name = "software"

    def __init__(self) -> None:
        from privbench.defenses.tee.platforms.software.authority import Authority

        self._chip = Authority().chip()

    def evidence(self, report_data: bytes) -> Any:
        from privbench.defenses.tee.platforms.software.firmware import Launched, evidence

        return evidence(self._chip, Launched(bytes(48)), report_data)


def _allowed() -> tuple[int, ...]:
    return tuple(sorted(os.sched_getaffinity(0)))


def checked(config: dict[str, Any]) -> Recording:
    """The recording that a configuration describes.

    Raises:
        ConfigError: for a field that is refused.
    """
    trusted = conform(config.get("trusted_targets") or (), tuple[str, ...], "trusted_targets")
    # A set may give sizes of workloads that were not chosen: those have no target.
    chosen = {n: w for n, w in (config.get("workloads") or {}).items() if isinstance(w, dict) and "_target_" in w}
    target = f"{Recording.__module__}.{Recording.__name__}"
    return build({"_target_": target, **config, "workloads": chosen}, trusted)
