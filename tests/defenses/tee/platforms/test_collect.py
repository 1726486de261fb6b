"""``privbench attest collect``: its files are what ``attest verify`` takes."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from privbench.defenses.tee import collect
from privbench.defenses.tee.command import attest
from privbench.defenses.tee.platforms import configfs

ASKED = bytes(range(64)).hex()
OPEN = ["--any-measurement", "--tcb-floor", "none", "--at", "2026-11-24T12:00:00Z"]


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    collect.add(parser.add_subparsers(dest="action", required=True))
    return collect.run(parser.parse_args(["collect", *arguments]))


@pytest.fixture
def cache(tmp_path: Path) -> list[str]:
    return ["--cache", str(tmp_path / "cache")]


def test_real_evidence_is_collected_and_verified(
    monkeypatch: pytest.MonkeyPatch, tsm: Any, genoa: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    kernel = tsm(lambda *_: (genoa.outblob, genoa.auxblob))
    monkeypatch.setattr(configfs, "Files", lambda: kernel)
    out, asked = str(tmp_path / "out"), genoa.report_data.hex()
    assert run("--report-data", asked, "--out", out, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["schema"], shown["platform"], shown["report_data"]) == (1, "sev_snp", asked)
    assert shown["report"] == f"{out}/report.bin"
    names = [Path(path).name for path in shown["certificates"]]
    assert names == ["0-sev-vcek.der", "1-sev-genoa.der", "2-ark-genoa.der"]
    given = ["--report", f"{out}/report.bin", "--certs", f"{out}/certs", "--report-data", asked]
    assert attest(["verify", *given, *OPEN]) == 0
    assert "accepted: assurance hardware" in capsys.readouterr().out


def test_forged_evidence(
    monkeypatch: pytest.MonkeyPatch, tsm: Any, guest: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    made = guest()
    kernel = tsm(made.reply)
    monkeypatch.setattr(configfs, "Files", lambda: kernel)
    (tmp_path / "out").mkdir()
    (tmp_path / "root").write_bytes(made.root)
    assert run("--report-data", ASKED, "--out", f"{tmp_path}/out", "--vmpl", "3") == 0
    assert "not verified" in capsys.readouterr().out
    given = ["--report", f"{tmp_path}/out/report.bin", "--certs", f"{tmp_path}/out/certs", "--report-data", ASKED]
    assert attest(["verify", *given, *OPEN, "--root", f"{tmp_path}/root", "--vmpl", "3"]) == 0


def test_names_from_the_host_stay_in_the_folder(monkeypatch: pytest.MonkeyPatch, tsm: Any, guest: Any, tmp_path: Path):
    made = guest(ask_name="../../SEV-Milan")
    kernel = tsm(made.reply)
    monkeypatch.setattr(configfs, "Files", lambda: kernel)
    assert run("--report-data", ASKED, "--out", f"{tmp_path}/out") == 0
    assert (tmp_path / "out" / "certs" / "1-______sev-milan.der").read_bytes() == made.ask


def test_without_a_guest_the_reason_is_given(
    monkeypatch: pytest.MonkeyPatch, tsm: Any, guest: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    kernel = tsm(guest().reply, present=False)
    monkeypatch.setattr(configfs, "Files", lambda: kernel)
    assert run("--report-data", ASKED, "--out", f"{tmp_path}/out") == 1
    said = capsys.readouterr()
    assert said.err.startswith("privbench attest: no evidence: configfs-tsm: no such folder; /dev/sev-guest: ")
    assert not said.out
    assert not (tmp_path / "out").exists()


def test_without_certificates_the_way_to_them_is_given(
    monkeypatch: pytest.MonkeyPatch, tsm: Any, guest: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    made = guest()
    made.table = b""
    kernel = tsm(made.reply)
    monkeypatch.setattr(configfs, "Files", lambda: kernel)
    assert run("--report-data", ASKED, "--out", f"{tmp_path}/out", "--cache", f"{tmp_path}/cache") == 1
    assert f"{tmp_path}/cache/Milan/vcek-chain.pem" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--report-data", "xyz"], "report_data=xyz"),
        (["--report-data", "00"], "report_data=00: 64 bytes"),
        (["--report-data", ASKED, "--vmpl", "4"], "vmpl=4"),
        (["--report-data", ASKED, "--product", "Rome"], "product=Rome"),
        (["--report-data", ASKED, "--cache", ""], "cache="),
    ],
)
def test_bad_usage_is_named(options: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(*options, "--out", f"{tmp_path}/out") == 2
    assert named in capsys.readouterr().err


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").touch()
    for out in (tmp_path, tmp_path / "file"):
        assert run("--report-data", ASKED, "--out", str(out)) == 2
        assert f"out={out}: a folder that is empty or not there" in capsys.readouterr().err


def test_no_torch_is_needed():
    code = "import sys, privbench.defenses.tee.collect; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
