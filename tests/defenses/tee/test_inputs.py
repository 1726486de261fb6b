"""What ``privbench attest measure`` is given: by files or by digests, and bad input by name in one line."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from privbench.defenses.tee import firmware as fw
from privbench.defenses.tee import measure

CPU = ["--vcpus", "2", "--vcpu-type", "EPYC-v4"]
RESET, HASHES = 0x80B004, 0x810C00
LISTED = [
    {"gpa": 0x800000, "size": 0x9000, "section_type": 1},
    {"gpa": 0x80A000, "size": 0x3000, "section_type": 1},
    {"gpa": 0x80D000, "size": 0x1000, "section_type": 2},
    {"gpa": 0x80E000, "size": 0x1000, "section_type": 3},
    {"gpa": 0x80F000, "size": 0x1000, "section_type": 4},
    {"gpa": 0x810000, "size": 0x1000, "section_type": 16},
    {"gpa": 0x811000, "size": 0xF000, "section_type": 1},
]


def described(**changes: Any) -> dict[str, Any]:
    """The guest of ``files`` with a command line, as JSON that has only digests."""
    return {
        "ovmf_sections": LISTED,
        "ovmf_hash": "00" * 48,
        "kernel_hash": hashlib.sha256(b"kernel" * 999).hexdigest(),
        "initrd_hash": hashlib.sha256(b"initrd").hexdigest(),
        "base_cmdline": "console=ttyS0",
        "sev_hashes_table_gpa": HASHES,
        "sev_es_reset_eip": RESET,
        "vcpus": 2,
        "vcpu_type": "EPYC-v4",
        "guest_features": 1,
    } | changes


def test_digests_give_what_files_give(files: dict[str, Path], measuring: Any, tmp_path: Path):
    known = measure.ovmf_hash(fw.parse(files["ovmf"].read_bytes())).hex()
    (tmp_path / "inputs").write_text(
        json.dumps({"sev_snp_measurement": described(ovmf_hash=known), "other": "ignored"})
    )
    options = ["--kernel", files["kernel"], "--initrd", files["initrd"], "--append", "console=ttyS0"]
    shown = json.loads(measuring("--ovmf", files["ovmf"], *CPU, *options, "--json")[1])
    assert shown == json.loads(measuring("--inputs", tmp_path / "inputs", "--json")[1])
    assert shown["kernel_hash"] == described()["kernel_hash"]
    assert (shown["schema"], shown["mode"], shown["vcpu_sig"], shown["guest_features"]) == (1, "snp", "0x800f12", "0x1")


BAD_OPTIONS = [
    ((), "ovmf=None"),
    (("--ovmf", "OVMF"), "vcpus=None"),
    (("--ovmf", "/nowhere", *CPU), "ovmf=/nowhere: No such file"),
    (("--ovmf", "/", *CPU), "ovmf=/: a regular file"),
    (("--ovmf", "/dev/zero", *CPU), "ovmf=/dev/zero: a regular file"),
    (("--ovmf", "OVMF", "--vcpus", "2"), "vcpu_type=None"),
    (("--ovmf", "OVMF", "--vcpus", "two", "--vcpu-type", "EPYC"), "vcpus=two: an integer"),
    (("--ovmf", "OVMF", "--vcpus", "0x" + "f" * 9999, "--vcpu-type", "EPYC"), "vcpus=0xfff"),
    *(
        (("--ovmf", "OVMF", "--vcpus", n, "--vcpu-type", "EPYC"), f"vcpus={n}: an integer from 1 to 4096")
        for n in (0, -1)
    ),
    (("--ovmf", "OVMF", "--vcpus", "1000000000", "--vcpu-type", "EPYC"), "vcpus=1000000000"),
    (("--ovmf", "OVMF", "--vcpus", "1", "--vcpu-type", "Pentium"), "vcpu_type=Pentium: one of EPYC, "),
    (("--ovmf", "OVMF", *CPU, "--vcpu-sig", "1"), "vcpu_type=EPYC-v4: one of a type, a signature"),
    (("--ovmf", "OVMF", "--vcpus", "1", "--vcpu-sig", "0x100000000"), "vcpu_sig=4294967296"),
    (("--ovmf", "OVMF", "--vcpus", "1", "--vcpu-family", "25"), "vcpu_model=None"),
    (("--ovmf", "OVMF", "--vcpus", "1", "--vcpu-family", "271", "--vcpu-model", "1", "--vcpu-stepping", "1"), "271"),
    (("--ovmf", "OVMF", *CPU, "--vmm-type", "xen"), "vmm_type=xen: one of QEMU, ec2, gce"),
    (("--ovmf", "OVMF", *CPU, "--initrd", "OVMF"), "only together with --kernel"),
    (("--ovmf", "OVMF", *CPU, "--append", "quiet"), "append=quiet: only together with --kernel"),
    (("--ovmf", "OVMF", *CPU, "--kernel", "/nowhere"), "kernel=/nowhere"),
    (("--ovmf", "OVMF", *CPU, "--kernel", "OVMF", "--initrd", "/nowhere"), "initrd=/nowhere"),
    (("--ovmf", "OVMF", *CPU, "--kernel", "OVMF", "--append", "\udcff"), "append="),
    (("--ovmf", "OVMF", *CPU, "--guest-features", "0"), "guest_features=0"),
    (("--ovmf", "OVMF", *CPU, "--guest-features", "0x20"), "guest_features=0x20: bit 0 set"),
    (("--ovmf", "OVMF", *CPU, "--snp-ovmf-hash", "00" * 32), "snp_ovmf_hash=0000"),
    (("--ovmf", "OVMF", *CPU, "--snp-ovmf-hash", "x" * 96), "hexadecimal digits"),
    (("--ovmf", "OVMF", *CPU, "--vars-size", "4096"), "vars_size=4096: only together with --svsm"),
    (("--inputs", "/nowhere"), "inputs=/nowhere: No such file"),
    (("--inputs", "OVMF", "--vcpus", "1"), "vcpus=given"),
    (("--inputs", "OVMF"), "not JSON"),
]


@pytest.mark.parametrize(("options", "named"), BAD_OPTIONS)
def test_bad_options_are_named(options: Any, named: str, files: dict[str, Path], measuring: Any):
    status, _, err = measuring(*(files["ovmf"] if word == "OVMF" else word for word in options))
    assert status == 2
    assert named in err
    assert len(err) < 700


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sections": ((0x800000, 0x9000, 1),)}, "a section of type 16"),
        ({"entries": ((fw.RESET_BLOCK, RESET),)}, "sev_hashes_table_gpa=0"),
        ({"entries": ((fw.RESET_BLOCK, RESET), (fw.HASH_TABLE, 0x810FF0))}, "sev_hashes_table_gpa=8458224"),
    ],
)
def test_a_kernel_that_ovmf_would_not_measure_is_refused(
    changes: Any, named: str, files: dict[str, Path], ovmf_image: Any, measuring: Any
):
    files["ovmf"].write_bytes(ovmf_image(**changes))
    assert measuring("--ovmf", files["ovmf"], *CPU)[0] == 0
    status, _, err = measuring("--ovmf", files["ovmf"], *CPU, "--kernel", files["kernel"])
    assert status == 2
    assert named in err


@pytest.mark.parametrize(("entries", "named"), [((), "where SEV-ES"), (((fw.RESET_BLOCK, 0),), "sev_es_reset_eip=0")])
def test_an_image_has_to_say_where_processors_start(
    entries: Any, named: str, ovmf_image: Any, measuring: Any, tmp_path: Path
):
    (tmp_path / "ovmf").write_bytes(ovmf_image(entries=entries))
    status, _, err = measuring("--ovmf", tmp_path / "ovmf", *CPU)
    assert status == 2
    assert named in err


def test_an_image_without_sev_metadata_is_not_measured(ovmf_image: Any, measuring: Any, tmp_path: Path):
    (tmp_path / "ovmf").write_bytes(ovmf_image(offset=0))
    status, _, err = measuring("--ovmf", tmp_path / "ovmf", *CPU)
    assert status == 2
    assert f"ovmf={tmp_path / 'ovmf'}: no SEV metadata" in err


def test_huge_files_are_refused_unread(files: dict[str, Path], ovmf_image: Any, measuring: Any):
    for name, other in (("ovmf", []), ("kernel", ["--ovmf", files["initrd"]])):
        with files[name].open("r+b") as file:
            file.truncate(1 << 40)
        files["initrd"].write_bytes(ovmf_image())
        status, _, err = measuring(f"--{name}", files[name], *other, *CPU)
        assert status == 2
        assert f"{name}={files[name]}: a regular file of 1 to" in err


def sections(**changes: Any) -> dict[str, Any]:
    """A description whose first section is changed."""
    first, *others = LISTED
    return described(ovmf_sections=[first | changes, *others])


BAD_DESCRIPTIONS = [
    *(({k: v for k, v in described().items() if k != name}, f"inputs.{name}=missing") for name in described()),
    (described(vcpu=2), "inputs.vcpu=2: an unknown key"),
    (described(**{"\x1b[2J\udc80": 2}), "inputs.\\x1b[2J\\udc80=2: an unknown key"),
    *((described(vcpus=v), f"inputs.vcpus={v}") for v in (0, -1, 10**9, True, 2.0, "2", None, [2])),
    (described(vcpus="9" * 9999), "inputs.vcpus=999"),
    *((described(vcpu_type=v), f"inputs.vcpu_type={v}") for v in ("epyc", "", None, 3, ["EPYC"], {})),
    *((described(guest_features=v), "inputs.guest_features=") for v in (0, 2, -1, 1 << 64, "0x1", None)),
    *((described(base_cmdline=v), "inputs.base_cmdline=") for v in (None, 1, ["quiet"], "a\0b", "\udc80")),
    *((described(**{n: v}), f"inputs.{n}=") for n in ("kernel_hash", "initrd_hash") for v in ("", "00" * 48, None)),
    *((described(ovmf_hash=v), "inputs.ovmf_hash=") for v in ("", "00" * 32, "g" * 96, None, 7, ["00"])),
    *((described(sev_es_reset_eip=v), "inputs.sev_es_reset_eip=") for v in (0, -1, 1 << 32, "1", None)),
    *((described(sev_hashes_table_gpa=v), "inputs.sev_hashes_table_gpa=") for v in (0, -1, 1 << 32, HASHES + 4096)),
    *((described(ovmf_sections=v), "inputs.ovmf_sections=") for v in ([], {}, None, "all", LISTED * 10)),
    *((described(ovmf_sections=[v]), "inputs.ovmf_sections[0]") for v in (None, 7, [], {}, {"gpa": 0, "size": 4096})),
    (described(ovmf_sections=LISTED[:3]), "a section of type 16"),
    *((sections(gpa=v), "inputs.ovmf_sections[0].gpa=") for v in (-4096, 1, 1 << 32, "0", None, 0.0)),
    *((sections(size=v), "inputs.ovmf_sections[0].size=") for v in (0, 4095, 1 << 32, 10**30, "4096", True)),
    *((sections(section_type=v), "inputs.ovmf_sections[0].section_type=") for v in (0, 5, 17, True, "1", None, [])),
    (sections(name="x"), "inputs.ovmf_sections[0].name=x: an unknown key"),
]


@pytest.mark.parametrize(("description", "named"), BAD_DESCRIPTIONS, ids=str)
def test_bad_descriptions_are_named(description: dict[str, Any], named: str, measuring: Any, tmp_path: Path):
    (tmp_path / "inputs").write_text(json.dumps({"sev_snp_measurement": description}))
    status, _, err = measuring("--inputs", tmp_path / "inputs")
    assert status == 2
    assert named in err
    assert len(err) < 500


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[]", "sev_snp_measurement"),
        ("{}", "sev_snp_measurement"),
        ('{"sev_snp_measurement": []}', "sev_snp_measurement"),
        ('{"sev_snp_measurement": {"vcpus": 1, "vcpus": 2}}', "only once"),
        ("[" * 200_000, "not JSON"),
        ("9" * 5000, "not JSON"),
        ("\xff", "not JSON"),
        (" " * (1 << 20) + "{}", "a regular file of 1 to 1048576 bytes"),
    ],
    ids=str.__len__,
)
def test_bad_json_is_refused(text: str, named: str, measuring: Any, tmp_path: Path):
    (tmp_path / "inputs").write_bytes(text.encode("latin-1"))
    status, _, err = measuring("--inputs", tmp_path / "inputs")
    assert status == 2
    assert named in err


def test_verifying_needs_no_measuring_library():
    code = "import sys, privbench.defenses.tee.command; sys.exit('sevsnpmeasure' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
