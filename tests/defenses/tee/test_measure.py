"""``privbench attest measure``: a real guest's measurement, published ones, and the library's on images made here."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from sevsnpmeasure import guest as library
from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vcpu_types import CPU_SIGS
from sevsnpmeasure.vmm_types import VMMType

from privbench.defenses.tee import firmware as fw
from privbench.defenses.tee import measure

AMDSEV = (
    (0x800000, 0x9000, 1),
    (0x80A000, 0x3000, 1),
    (0x80D000, 0x1000, 2),
    (0x80E000, 0x1000, 3),
    (0x80F000, 0x1000, 4),
    (0x810000, 0x1000, 16),
    (0x811000, 0xF000, 1),
)
RESET, HASHES = 0x80B004, 0x810C00
EMPTY = hashlib.sha256().digest()
CPU = ["--vcpus", "2", "--vcpu-type", "EPYC-v4"]

# tests/test_guest.py of sev-snp-measure 0.0.13: the AmdSev OVMF of its fixtures, and an empty kernel and initrd.
PUBLISHED_OVMF = "086e2e9149ebf45abdc3445fba5b2da8270bdbb04094d7a2c37faaa4b24af3aa16aff8c374c2a55c467a50da6d466b74"
PUBLISHED = """
QEMU 1 0x21 empty 329c8ce0972ae52343b64d34a434a86f245dfd74f5ed7aae15d22efc78fb9683632b9b50e4e1d7fa41179ef98a7ef198
QEMU 1 0x1 empty ddc5224521617a536ee7ce9dd6224d1b58a8d4fda1c741f3ac99fc4bfa04ba6e9fc98646d4a07a9079397fa3852819b5
QEMU 1 0x21 console 803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7e1e17895dfe778d0228977
QEMU 1 0x1 console 6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa
ec2 1 0x21 empty 0ce9ccc06bab55eebe8abc234f3df6514883977a68a591b71052498ab52b2f1aa415db338033946ef93aa8278c0d67fb
ec2 1 0x1 empty 0883bd0eeb716e65b7b977a321c278d1e51b33b5c655fab985443bbcc65c086b9c15e8a0bd8811050dec7e24964e5056
gce 1 0x1 empty 5da7106cf14cf46b1725ebab123eb9e53bd46a1e9f400cd0c08e7827b04b688ea8b4e403c8404efed4397ea5d5d0722e
gce 4 0x1 empty 5c5debf100fc339f90276e761ee1f1658d08922c3b20e2a2e6c7a6c3370b2452a15a00eae11886a93d6fd1e7ab81e29d
QEMU 1 0x21 no-kernel e1e1ca029dd7973ab9513295be68198472dcd4fc834bd9af9b63f6e8a1674dbf281a9278a4a2ebe0eed9f22adbcd0e2b
QEMU 1 0x1 no-kernel 19358ba9a7615534a9a1e2f0dfc29384dcd4dcb7062ff9c6013b26869a5fc6ecabe033c48dd6f6db5d6d76e7c5df632d
QEMU 4 0x21 empty 4953b1fb416fa874980e8442b3706d345926d5f38879134e00813c5d7abcbe78eafe7b422907be0b4698e2414a631942
QEMU 4 0x1 empty 5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a92441310ba6c4933de877c36e23046ad5
"""


@pytest.mark.parametrize("case", ["milan-v3-dstack"], indirect=True)
def test_a_real_guests_measurement_is_recomputed(case: Any, measuring: Any, tmp_path: Path):
    # The command line is base_cmdline as it is: the application is bound by HOST_DATA, not by MEASUREMENT.
    path = case.folder / "measurement-inputs.json"
    status, out, _ = measuring("--inputs", path)
    assert (status, out) == (0, case.report[0x90:0xC0].hex())
    changed = json.loads(path.read_text())
    changed["sev_snp_measurement"]["base_cmdline"] += " debug"
    (tmp_path / "changed").write_text(json.dumps(changed))
    status, other, _ = measuring("--inputs", tmp_path / "changed")
    assert status == 0
    assert other != out


@pytest.mark.parametrize("row", PUBLISHED.strip().splitlines())
def test_published_measurements(row: str):
    vmm, vcpus, features, cmdline, published = row.split()
    text = {"empty": "", "console": "console=ttyS0 loglevel=7"}
    guest = measure.Guest(
        ovmf_hash=bytes.fromhex(PUBLISHED_OVMF),
        ovmf_sections=tuple(fw.Section(*section) for section in AMDSEV),
        sev_es_reset_eip=RESET,
        sev_hashes_table_gpa=HASHES,
        vcpus=int(vcpus),
        vcpu_sig=None if vmm == "gce" else CPU_SIGS["EPYC-v4"],
        kernel=measure.Kernel(EMPTY, measure.cmdline_hash("", text[cmdline])) if cmdline in text else None,
        guest_features=int(features, 0),
        vmm_type=vmm,
    )
    assert measure.launch_digest(guest).hex() == published


@pytest.mark.parametrize("vmm", ["QEMU", "ec2", "gce"])
@pytest.mark.parametrize("kernel", [(), ("kernel",), ("kernel", "initrd"), ("kernel", "initrd", "append")])
@pytest.mark.parametrize("vcpus", [1, 5])
def test_files_give_the_librarys_digest(vmm: str, kernel: Any, vcpus: int, files: dict[str, Path], measuring: Any):
    chosen: dict[str, Any] = {**files, "append": "console=ttyS0 é"}
    options = [word for name in ("ovmf", *kernel) for word in (f"--{name}", chosen[name])]
    status, out, _ = measuring(*options, "--vcpus", vcpus, "--vcpu-sig", "0xa00f11", "--vmm-type", vmm)
    kernel_file, initrd_file, append = [
        str(chosen[name]) if name in kernel else "" for name in ("kernel", "initrd", "append")
    ]
    expected = library.calc_launch_digest(
        SevMode.SEV_SNP, vcpus, 0xA00F11, str(files["ovmf"]), kernel_file, initrd_file, append, 1, vmm_type=VMMType[vmm]
    )
    assert (status, out) == (0, expected.hex())


def test_a_known_hash_stands_for_ovmfs_pages(files: dict[str, Path], measuring: Any, tmp_path: Path):
    known = measure.ovmf_hash(fw.parse(files["ovmf"].read_bytes())).hex()
    whole = measuring("--ovmf", files["ovmf"], *CPU)
    other = bytearray(files["ovmf"].read_bytes())
    other[:8] = b"modified"
    (tmp_path / "other").write_bytes(other)
    assert measuring("--ovmf", tmp_path / "other", *CPU)[1] != whole[1]
    assert measuring("--ovmf", tmp_path / "other", *CPU, "--snp-ovmf-hash", known) == whole


def test_a_processor_is_named_in_three_ways(files: dict[str, Path], measuring: Any):
    ways = (["--vcpu-type", "EPYC-Milan"], ["--vcpu-sig", "0xa00f11"])
    parts = ["--vcpu-family", 25, "--vcpu-model", 1, "--vcpu-stepping", 1]
    found = {measuring("--ovmf", files["ovmf"], "--vcpus", 1, *way) for way in (*ways, parts)}
    assert len(found) == 1
    assert found != {measuring("--ovmf", files["ovmf"], "--vcpus", 1, "--vcpu-type", "EPYC")}


def test_an_svsm_gives_the_librarys_digest(files: dict[str, Path], ovmf_image: Any, measuring: Any, tmp_path: Path):
    svsm, variables = tmp_path / "svsm", tmp_path / "vars"
    svsm.write_bytes(ovmf_image(sections=((0, 0xA0000, 1), (0xA0000, 0x1000, 2)), entries=((fw.SVSM_INFO, 0x40),)))
    variables.write_bytes(bytes(540672))
    expected = library.calc_launch_digest(
        SevMode.SEV_SNP_SVSM, 2, CPU_SIGS["EPYC-v4"], str(files["ovmf"]), "", "", "", 1, svsm_file=str(svsm),
        ovmf_vars_size=540672,
    )  # fmt: skip
    for how in (("--vars-size", 540672), ("--vars-file", variables)):
        assert measuring("--ovmf", files["ovmf"], *CPU, "--svsm", svsm, *how)[:2] == (0, expected.hex())
    for extra, named in ((["--kernel", svsm], "kernel="), ([], "vars_size="), (["--vars-size", 100], "vars_size=100")):
        status, _, err = measuring("--ovmf", files["ovmf"], *CPU, "--svsm", svsm, *extra)
        assert status == 2
        assert named in err
    assert "svsm=" in measuring("--ovmf", files["ovmf"], *CPU, "--svsm", files["ovmf"], "--vars-size", 4096)[2]
    assert "vcpu_type=None" in measuring("--ovmf", files["ovmf"], "--vcpus", 1, "--svsm", svsm, "--vars-size", 4096)[2]
