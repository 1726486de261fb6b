"""Made records, for tests of what is done with them: every number in them is invented and says so in ``arm``."""

import copy
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from privbench.benchmarks.overhead.schema import SCHEMA

MACHINE: dict[str, Any] = {
    "cpu": {
        "vendor": "AuthenticAMD",
        "model_name": "AMD EPYC 7763 64-Core Processor",
        "family": 25,
        "model": 1,
        "stepping": 1,
        "microcode": "0xa0011d5",
        "logical": 4,
        "cores": 4,
        "sockets": 1,
        "smt": False,
        "flags": ["aes", "avx2", "sev_snp"],
        "caches": [
            {"level": 1, "type": "Data", "bytes": 32768, "shared_by": 1},
            {"level": 2, "type": "Unified", "bytes": 524288, "shared_by": 1},
            {"level": 3, "type": "Unified", "bytes": 33554432, "shared_by": 4},
        ],
        "mitigations": {"spectre_v2": "Mitigation: Retpolines"},
        "governor": None,
        "frequency_driver": None,
        "boost": None,
        "max_khz": None,
    },
    "kernel": {
        "release": "6.8.0-45-generic",
        "version": "#45-Ubuntu SMP",
        "command_line": "BOOT_IMAGE=/vmlinuz root=/dev/vda1 ro",
        "clocksource": "kvm-clock",
        "swiotlb_bytes": 67108864,
        "swiotlb_forced": False,
    },
    "memory": {
        "total_bytes": 16777216000,
        "available_bytes": 15777216000,
        "swap_bytes": 0,
        "page_bytes": 4096,
        "transparent_huge_pages": "madvise",
        "transparent_huge_page_defrag": "madvise",
        "huge_pages": [{"bytes": 2097152, "total": 0, "free": 0}],
        "numa": [{"node": 0, "cpus": "0-3", "bytes": 16777216000, "distances": [10]}],
    },
    "place": {
        "hypervisor": "kvm",
        "product": "QEMU Standard PC (Q35 + ICH9, 2009)",
        "container": None,
        "cpu_limit": None,
        "memory_limit_bytes": None,
        "cpus_allowed": [0, 1, 2, 3],
        "scratch_filesystem": "ext4",
    },
    "gpus": None,
}

LOAD = {"others": 0.01, "steal": 0.0, "loadavg": [0.5, 0.4, 0.3]}


def measured(name: str, wall_ns: Sequence[int], **changes: Any) -> dict[str, Any]:
    workload, _, case = name.partition("/")
    starts = [sum(wall_ns[:i]) for i in range(len(wall_ns))]
    made = {
        "workload": workload,
        "case": case or "default",
        "settings": {},
        "ablation": None,
        "status": "measured",
        "reason": None,
        "work": {"amount": 1, "unit": "calls"},
        "calls": 1,
        "threads": 1,
        "pinned": [0],
        "warmup": 1,
        "stopped": "repeats",
        "wall_ns": [*wall_ns],
        "cpu_ns": [*wall_ns],
        "start_ns": starts,
        "load": copy.deepcopy(LOAD),
        "doubts": [],
    }
    return {**made, **changes}


@pytest.fixture
def make_record() -> Callable[..., dict[str, Any]]:
    """``make_record({"syscalls/getppid": [100, 101]}, boot="a")``: a record with these wall times and changes."""

    def make(times: Mapping[str, Sequence[int]] | None = None, **changes: Any) -> dict[str, Any]:
        times = times or {"syscalls/getppid": [100, 101, 99], "memory_bandwidth/triad": [5000, 5100, 4900]}
        made: dict[str, Any] = {
            "schema": SCHEMA,
            "created": "2026-11-29T08:00:00+00:00",
            "arm": "invented",
            "boot": "00000000-0000-4000-8000-000000000001",
            "set": "quick",
            "stop_rule": {"warmup": 1, "repeats": 3, "seconds": 10.0},
            "machine": copy.deepcopy(MACHINE),
            "packages": {"torch": "2.15.0", "numpy": "2.4.6", "privbench": "0.1.0", "python": "3.11.7"},
            "signs": [],
            "load": copy.deepcopy(LOAD),
            "measurements": [measured(name, walls) for name, walls in times.items()],
            "evidence": None,
        }
        return {**made, **changes}

    return make


@pytest.fixture
def plant(tmp_path: Path) -> Callable[[str], Path]:
    """``plant("snp_guest")``: a root directory with the files of ``machines/snp_guest.txt``."""

    def make(name: str) -> Path:
        text = (Path(__file__).with_name("machines") / f"{name}.txt").read_text()
        for path, content in re.findall(r"^==> ([^\n]+) <==\n(.*?)(?=^==> |\Z)", text, re.DOTALL | re.MULTILINE):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(content)
        return tmp_path

    return make


@pytest.fixture(scope="session")
def forge() -> Any:
    """The forge of AMD-like chains and reports, under a root of the tests' own, of tests/defenses/tee."""
    path = Path(__file__).parents[1] / "defenses" / "tee" / "conftest.py"
    spec = importlib.util.spec_from_file_location("forge_of_reports", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look for their module by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.Forge
