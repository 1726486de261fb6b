"""Fingerprints of machines whose files are at hand."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from jsonschema import Draft202012Validator

from privbench.benchmarks.overhead import fingerprint, gpu, probe, schema

MACHINES = ("kvm_guest", "snp_guest", "bare_metal", "container")


def plain(part: str, machine: dict) -> dict:
    """What is known of it."""
    return {k: v for k, v in machine[part].items() if v not in (None, [], {})}


@pytest.mark.parametrize("name", MACHINES)
def test_a_fingerprint_fits_the_schema(plant, name):
    made = fingerprint.machine(plant(name))
    properties = schema.RECORD["properties"]["machine"]
    assert [e.message for e in Draft202012Validator(properties).iter_errors(made)] == []


def test_a_kvm_guest(plant):
    made = fingerprint.machine(plant("kvm_guest"))
    cpu = made["cpu"]
    assert (cpu["vendor"], cpu["family"], cpu["model"], cpu["stepping"]) == ("AuthenticAMD", 25, 17, 1)
    assert (cpu["microcode"], cpu["logical"], cpu["cores"], cpu["sockets"], cpu["smt"]) == ("0x1000065", 2, 2, 1, False)
    assert [(c["level"], c["bytes"], c["shared_by"]) for c in cpu["caches"] if c["type"] != "Instruction"] == [
        (1, 32 * 2**10, 1),
        (2, 2**20, 1),
        (3, 32 * 2**20, 2),
    ]
    assert fingerprint.cache(made, 1) == 32 * 2**10
    assert fingerprint.cache(made, 4) is None
    assert cpu["mitigations"]["meltdown"] == "Not affected"
    assert cpu["governor"] is None
    assert made["place"]["hypervisor"] == "kvm"
    assert made["kernel"]["clocksource"] == "tsc"
    assert made["kernel"]["swiotlb_forced"] is False
    assert made["memory"]["total_bytes"] == 24684084 * 1024
    assert made["memory"]["transparent_huge_pages"] == "madvise"
    assert made["memory"]["numa"] == [{"node": 0, "cpus": "0-1", "bytes": 16738508 * 1024, "distances": [10]}]
    assert fingerprint.boot(Path("/nowhere")) == "unknown"


def test_a_guest_whose_command_line_forces_the_bounce_buffer(plant):
    root = plant("snp_guest")
    made = fingerprint.machine(root)
    assert plain("kernel", made) == {
        "release": "6.8.0-45-generic",
        "command_line": "BOOT_IMAGE=/boot/vmlinuz root=LABEL=root ro console=ttyS0 swiotlb=524288,force",
        "clocksource": "kvm-clock",
        "swiotlb_bytes": 2**30,
        "swiotlb_forced": True,
    }
    assert made["place"]["product"] == "QEMU Standard PC (Q35 + ICH9, 2009)"
    assert fingerprint.boot(root) == "btime 1764404725"


def test_bare_metal(plant):
    made = fingerprint.machine(plant("bare_metal"))
    cpu = made["cpu"]
    assert made["place"]["hypervisor"] == "none"
    assert (cpu["sockets"], cpu["smt"], cpu["governor"], cpu["boost"]) == (2, True, "performance", True)
    assert cpu["frequency_driver"] == "acpi-cpufreq"
    assert cpu["max_khz"] == 3529052
    assert [n["distances"] for n in made["memory"]["numa"]] == [[10, 32], [32, 10]]
    assert made["memory"]["numa"][1]["bytes"] is None
    assert made["memory"]["huge_pages"] == [{"bytes": 2 * 2**20, "total": 1024, "free": 1000}]


def test_a_container_that_shows_little(plant):
    made = fingerprint.machine(plant("container"))
    assert made["cpu"]["logical"] is None
    assert made["place"]["hypervisor"] is None
    assert (made["place"]["container"], made["place"]["cpu_limit"]) == ("docker", 1.5)
    assert made["place"]["memory_limit_bytes"] == 2**30
    assert made["kernel"]["swiotlb_forced"] is None  # no command line is no answer


def test_the_file_system_is_that_of_the_nearest_mount(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mounts").write_text(
        "overlay / overlay rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n"
        "/dev/vdb /data/fast ext4 rw 0 0\n/dev/vdc /data/fast xfs rw 0 0\n"
    )
    kinds = {
        p: fingerprint.filesystem(tmp_path, Path(p)) for p in ("/data", "/data/fast/x", "/data/faster", "/tmp/a/b")
    }
    assert kinds == {"/data": "overlay", "/data/fast/x": "xfs", "/data/faster": "overlay", "/tmp/a/b": "tmpfs"}
    assert fingerprint.filesystem(tmp_path / "none", Path("/data")) is None


def test_this_machine_fits_the_schema_and_its_kernel_is_read():
    made = fingerprint.machine()
    assert list(Draft202012Validator(schema.RECORD["properties"]["machine"]).iter_errors(made)) == []
    assert made["kernel"]["release"]  # /proc/sys refuses readers that offer megabytes
    assert fingerprint.packages()["torch"]


@pytest.mark.parametrize(
    ("written", "found"), [("0-2,7", [0, 1, 2, 7]), ("", []), ("a-b", []), (None, []), ("3", [3]), ("1-", [1])]
)
def test_lists_of_processors(written, found):
    assert probe.cpus(written) == found


@pytest.mark.parametrize(("written", "found"), [("512K", 2**19), ("32M", 2**25), ("2048KB", 2**21), ("x", None)])
def test_sizes(written, found):
    assert probe.size(written) == found


class NVMLError(Exception):
    pass


def nvml(**changes):
    """A library with one H100 in production mode."""

    def refuse(*_):
        raise NVMLError("not supported")

    answers = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda i: i,
        "nvmlDeviceGetName": lambda _: b"NVIDIA H100 80GB HBM3",
        "nvmlSystemGetDriverVersion": lambda: "550.54.15",
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(total=85520809984),
        "nvmlSystemGetConfComputeCapabilities": lambda: SimpleNamespace(cpuCaps=3, gpusCaps=1),
        "nvmlSystemGetConfComputeState": lambda: SimpleNamespace(environment=2, ccFeature=1, devToolsMode=0),
        "nvmlSystemGetConfComputeGpusReadyState": lambda: 1,
        "nvmlDeviceGetConfComputeMemSizeInfo": lambda _: SimpleNamespace(protectedMemSizeKib=1024),
    }
    changed = {name: refuse if value is None else value for name, value in changes.items()}
    return SimpleNamespace(NVMLError=NVMLError, **{**answers, **changed})


def test_a_gpu_with_confidential_computing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    assert gpu.found() == [
        {
            "name": "NVIDIA H100 80GB HBM3",
            "driver": "550.54.15",
            "memory_bytes": 85520809984,
            "cpu_capability": "AMD SEV-SNP",
            "gpu_capability": "capable",
            "feature": "enabled",
            "environment": "production",
            "dev_tools": "off",
            "ready": True,
            "protected_bytes": 2**20,
        }
    ]


def test_a_driver_that_knows_no_confidential_computing_is_unknown_and_not_off(monkeypatch):
    without = dict.fromkeys(n for n in vars(nvml()) if "ConfCompute" in n)
    monkeypatch.setitem(sys.modules, "pynvml", nvml(**without))
    (found,) = gpu.found() or [{}]
    assert {found[n] for n in ("feature", "environment", "ready", "protected_bytes", "cpu_capability")} == {None}
    assert list(Draft202012Validator(schema.GPU).iter_errors(found)) == []


def test_a_state_of_a_later_driver_is_said_to_be_unknown(monkeypatch):
    state = SimpleNamespace(environment=7, ccFeature=1, devToolsMode=0)
    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlSystemGetConfComputeState=lambda: state))
    assert (gpu.found() or [])[0]["environment"] == "unknown (7)"


def test_no_library_is_no_answer(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu.found() is None
    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlInit=None))
    assert gpu.found() is None
