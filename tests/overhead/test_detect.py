"""Signs of protection on machines whose files are at hand."""

import struct
from pathlib import Path

import pytest

from privbench.benchmarks.overhead import detect
from privbench.benchmarks.overhead.schema import STRENGTHS


def found(root: Path) -> dict[str, bool | None]:
    return {sign["name"]: sign["found"] for sign in detect.signs(root)}


def register(root: Path, value: int) -> None:
    """As the kernel's msr module shows it: the register's number is the offset."""
    path = root / "dev/cpu/0/msr"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.seek(detect.MSR_SEV_STATUS)
        file.write(struct.pack("<Q", value))


def test_an_snp_guest_shows_every_sign_but_the_register_that_it_may_not_read(plant):
    root = plant("snp_guest")
    signs = found(root)
    assert signs == {
        "MSR 0xC0010131": None,
        "kernel log: Memory Encryption Features active": True,
        "configfs-tsm": True,
        "/dev/sev-guest": True,
        "/dev/tdx_guest": False,
        "Hyper-V isolation with a vTPM": False,
        "cpuinfo flags": True,
        "kvm_amd parameters": False,
    }
    assert detect.claimed(detect.signs(root)) == "AMD SEV SEV-ES SEV-SNP"


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "no SEV feature (0x0)"), (1, "SEV (0x1)"), (3, "SEV, SEV-ES (0x3)"), (7, "SEV, SEV-ES, SEV-SNP (0x7)")],
)
def test_the_register_names_its_bits(plant, value, said):
    root = plant("kvm_guest")
    register(root, value)
    first = detect.signs(root)[0]
    assert (first["found"], first["says"]) == (value > 0, said)
    assert detect.claimed(detect.signs(root)) == (said if value else "no sign of memory encryption")


def test_a_host_that_encrypts_its_own_memory_is_no_protected_guest(plant):
    root = plant("bare_metal")
    signs = {s["name"]: s for s in detect.signs(root)}
    line = signs["kernel log: Memory Encryption Features active"]
    assert line["found"] is False
    assert "AMD SME" in line["says"]
    assert signs["kvm_amd parameters"]["found"] is True
    assert signs["kvm_amd parameters"]["says"].startswith("kvm_amd has sev, sev_es:")
    assert detect.claimed(detect.signs(root)) == "no sign of memory encryption"


@pytest.mark.parametrize("name", ["kvm_guest", "container"])
def test_a_machine_without_protection_shows_none(plant, name):
    assert not any(found(plant(name)).values())


def test_what_cant_be_looked_at_is_unknown_and_not_absent(plant):
    signs = found(plant("container"))
    assert signs["kernel log: Memory Encryption Features active"] is None
    assert signs["MSR 0xC0010131"] is None


@pytest.mark.parametrize(
    ("boots", "sign"),
    [
        (["SEV", "none"], False),
        (["none", "SEV"], True),
        (["SEV", "none", "rest"], False),
        (["rest"], False),
        (["SEV"], True),
        (["SEV", "long", "none"], False),
        (["none", "long", "SEV"], True),
    ],
)
def test_a_log_of_many_boots_speaks_for_the_last_one(plant, boots, sign):
    """One disk, booted with and without protection: where only kern.log is there, and how long it may be."""
    lines = "Nov 29 08:00:00 vm kernel: [    0.000000] Linux version 6.8.0-45-generic\n"
    texts = {
        "SEV": f"{lines}Nov 29 08:00:01 vm kernel: [    0.842411] Memory Encryption Features active: AMD SEV\n",
        "none": f"{lines}Nov 29 08:00:01 vm kernel: [    0.842411] Freeing unused kernel image memory\n",
        "rest": "Nov 29 09:00:01 vm kernel: [ 3600.842411] eth0: link up\n",
        "long": "Nov 29 09:00:02 vm kernel: [ 3601.842411] eth0: link down\n" * 80_000,
    }
    root = plant("container")
    (root / "var/log").mkdir(parents=True)
    (root / "var/log/kern.log").write_text("".join(texts[boot] for boot in boots))
    assert found(root)["kernel log: Memory Encryption Features active"] is sign


def test_a_capability_is_never_the_claim(plant):
    root = plant("kvm_guest")
    cpuinfo = root / "proc/cpuinfo"
    cpuinfo.write_text(cpuinfo.read_text().replace("flags\t\t: fpu", "flags\t\t: sev_snp fpu"))
    assert found(root)["cpuinfo flags"] is True
    assert detect.claimed(detect.signs(root)) == "no sign of memory encryption"


def test_signs_stand_in_the_order_of_their_strength(plant):
    order = [STRENGTHS.index(sign["strength"]) for sign in detect.signs(plant("snp_guest"))]
    assert order == sorted(order)


def test_an_unknown_provider_is_no_sign_of_amd(plant):
    root = plant("snp_guest")
    (root / "sys/kernel/config/tsm/report/other/provider").write_text("new_guest\n")
    sign = next(s for s in detect.signs(root) if s["name"] == "configfs-tsm")
    assert (sign["found"], sign["says"]) == (False, "unknown: new_guest")


def test_an_azure_guest_is_said_to_be_perhaps_isolated(plant):
    root = plant("kvm_guest")
    (root / "sys/class/dmi/id").mkdir(parents=True, exist_ok=True)
    (root / "sys/class/dmi/id/sys_vendor").write_text("Microsoft Corporation\n")
    (root / "dev").mkdir(exist_ok=True)
    (root / "dev/tpmrm0").touch()
    assert found(root)["Hyper-V isolation with a vTPM"] is True
    assert detect.claimed(detect.signs(root)) == "no sign of memory encryption"
