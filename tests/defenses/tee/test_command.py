"""``privbench attest``: the verdict is the exit status, and bad input never ends in a traceback."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from privbench.defenses.tee.command import attest

OPEN = ["--any-measurement", "--any-report-data", "--tcb-floor", "none"]
LATER = ["--at", "2026-11-24T12:00:00Z"]


def test_a_folder_of_evidence_is_verified(case: Any, capsys: pytest.CaptureFixture[str]):
    given = ["verify", "--report", str(case.folder / "report.bin"), "--certs", str(case.folder), *LATER]
    assert attest([*given, *OPEN, "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert (out["schema"], out["verdict"], out["assurance"]) == (1, "accepted", "hardware")
    assert {"product", "checks", "report"} <= set(out)
    assert attest([*given, "--measurement", "00" * 48, "--any-report-data", "--tcb-floor", "none"]) == 1
    out = capsys.readouterr().out
    assert "fail            measurement" in out
    assert "refused: assurance none" in out
    measured = json.loads((case.folder / "manifest.json").read_text())["fields"]
    exact = ["--measurement", "00" * 48, measured["measurement"], "--report-data", measured["report_data"]]
    assert attest([*given, *exact, "--vmpl", "0", "--tcb-floor", "none"]) == 0


def test_forged_evidence_is_custom_under_its_root(forge: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made = forge()
    (tmp_path / "report").write_bytes(made.report())
    (tmp_path / "root.der").write_bytes(made.ark())
    (tmp_path / "certs").mkdir()
    for n, der in enumerate(made.chain()):
        (tmp_path / "certs" / str(n)).write_bytes(der)
    given = ["verify", "--report", f"{tmp_path}/report", "--certs", f"{tmp_path}/certs", *OPEN, *LATER]
    assert attest(given) == 1
    assert attest([*given, "--root", f"{tmp_path}/root.der"]) == 0
    assert "accepted: assurance custom" in capsys.readouterr().out


@pytest.mark.parametrize("raw", [b"", b"x", bytes(1183), bytes(1185), bytes(1184)])
def test_malformed_reports_are_refused(raw: bytes, tmp_path: Path):
    path = tmp_path / "report"
    path.write_bytes(raw)
    assert attest(["verify", "--report", str(path), "--certs", str(path), *OPEN]) == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ([], "measurements"),
        (["--any-measurement"], "report_data"),
        (["--any-report-data", "--measurement", "xyz"], "measurement"),
        (["--any-measurement", "--report-data", "00"], "report_data"),
        ([*OPEN, "--vmpl", "7"], "vmpl"),
        ([*OPEN, "--allow", "everything"], "allow"),
        ([*OPEN, "--at", "yesterday"], "at=yesterday"),
        ([*OPEN, "--at", "2026-13-01T00:00:00Z"], "at="),
        ([*OPEN, "--at", "2026-01-01T00:00:00"], "at="),
        ([*OPEN, "--root", "/nowhere"], "root=/nowhere"),
        ([*OPEN, "--crl", "/nowhere"], "crl=/nowhere"),
        ([*OPEN, "--policy", "/nowhere"], "/nowhere"),
        (["--any-measurement", "--any-report-data", "--tcb-floor", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_usage_names_the_option(options: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "report"
    path.write_bytes(bytes(1184))
    assert attest(["verify", "--report", str(path), "--certs", str(path), *options]) == 2
    assert named in capsys.readouterr().err


def test_show_prints_every_field(forge: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "report"
    path.write_bytes(forge(version=9).report())
    assert attest(["show", "--report", str(path)]) == 0
    out = capsys.readouterr().out
    assert "measurement                6d6d" in out
    assert "version 9: 2 to 5 are known" in out
    path.write_bytes(b"short")
    assert attest(["show", "--report", str(path)]) == 1


def test_no_torch_is_needed():
    code = "import sys, privbench.defenses.tee.command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def laid_out(made: Any, folder: Path) -> list[str]:
    """Forged evidence in a folder, and the options that accept it."""
    (folder / "certs").mkdir()
    for name, raw in zip(("vcek.der", "ask.der", "ark.der"), made.chain(), strict=True):
        (folder / "certs" / name).write_bytes(raw)
    (folder / "report.bin").write_bytes(made.report())
    (folder / "root.der").write_bytes(made.ark())
    return ["verify", "--report", f"{folder}/report.bin", *OPEN, *LATER, "--root", f"{folder}/root.der"]


def test_other_files_in_a_folder_are_passed_over(forge: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made = forge()
    given = [*laid_out(made, tmp_path), "--certs", f"{tmp_path}/certs"]
    pem = "-----BEGIN CERTIFICATE-----\n"
    for name, raw in {
        "report.bin": made.report(),
        "ark.crl": made.crl(),
        "thim.json": json.dumps({"vcekCert": f"{pem}MIIF\n"}).encode(),
        "README": f"PEM starts with {pem}".encode(),
        "empty": b"",
        "zeros": bytes(5000),
    }.items():
        (tmp_path / "certs" / name).write_bytes(raw)
    (tmp_path / "certs" / "old").mkdir()
    (tmp_path / "certs" / "nowhere").symlink_to("/nowhere/at/all")
    assert attest(given) == 0
    assert capsys.readouterr().err == ""
    (tmp_path / "certs" / "cut.pem").write_text(f"{pem}MIIF\n")
    assert attest(given) == 0
    assert "passed over" in capsys.readouterr().err
    assert attest([*given, f"{tmp_path}/certs/cut.pem"]) == 1


def test_options_may_be_repeated(forge: Any, tmp_path: Path):
    given = laid_out(forge(), tmp_path)
    held = [part for name in ("ask", "vcek", "ark") for part in ("--certs", f"{tmp_path}/certs/{name}.der")]
    assert attest([*given, *held]) == 0
    given.remove("--any-measurement")
    assert attest([*given, *held, "--measurement", (b"m" * 48).hex(), "--measurement", "00" * 48]) == 0
    assert attest([*given, *held, "--measurement", "11" * 48, "--measurement", "00" * 48]) == 1


def test_names_in_certificates_cant_write_lines_of_their_own(
    forge: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = laid_out(forge(ask_name="SEV\naccepted: assurance hardware\x1b[2J\u202e"), tmp_path)
    attest([*given, "--certs", f"{tmp_path}/certs"])
    out = capsys.readouterr().out
    assert "\\naccepted" in out
    assert out.isascii()
    assert not any(line.startswith("accepted: assurance hardware") for line in out.splitlines())


@pytest.mark.parametrize("endless", ["/dev/zero", "/dev/urandom"])
def test_endless_files_are_read_no_further_than_needed(endless: str, forge: Any, tmp_path: Path):
    given = laid_out(forge(), tmp_path)
    held = ["--certs", f"{tmp_path}/certs"]
    assert attest([*given, "--certs", endless]) == 1
    assert attest([*given, *held, "--crl", endless]) == 1
    assert attest([*given, *held, "--report", endless]) == 1
    assert attest([*given, *held, "--policy", endless]) == 2
    assert attest([*given, *held, "--tcb-floor", endless]) == 2
    assert attest([*given, *held, "--root", endless]) == 2
