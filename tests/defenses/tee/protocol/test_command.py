"""``privbench attest receipt verify``: what it prints, and how it exits."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from privbench.defenses.tee.protocol import command

from .conftest import CLIENTS, Forge, authority


def invoke(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers(dest="action", required=True))
    code = command.run(parser.parse_args(["receipt", "verify", *map(str, arguments)]))
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_says_what_holds_and_what_it_cannot_show(
    honest: Forge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run/artifacts").mkdir(parents=True)
    (tmp_path / "run/artifacts/attestation").symlink_to(honest.folder)
    head = f"3:{honest.digest(3).hex()}"
    code, out, _ = invoke(capsys, tmp_path / "run", "--head", head)
    assert code == 0
    assert "accepted: assurance software" in out
    assert "1.9115 (client, model_recipient); infinite (client, server_operator)" in out
    assert "What this cannot show:\n- That nothing came after" in out
    assert head in out
    assert len(out.splitlines()) < 45


def test_the_command_prints_a_stable_schema(honest: Forge, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = invoke(capsys, honest.folder, "--json")
    found = json.loads(out)
    assert (code, found["schema"], found["verdict"], found["assurance"]) == (0, 1, "accepted", "software")
    assert found["head"] == {"round": 3, "digest": honest.digest(3).hex()}
    assert [r["receipt"]["accepted"] for r in found["rounds"]] == [CLIENTS - 1] * 3


def test_the_command_names_what_fails(forge: Forge, capsys: pytest.CaptureFixture[str]) -> None:
    forge.resign(3, noise_multiplier=0.1, run="\x1b[2Jx\n")
    code, out, _ = invoke(capsys, forge.folder)
    assert code == 1
    assert "fail            noise_multiplier       round 3: 0.1 is stated, 2.0 agreed" in out
    assert "refused: assurance none" in out
    assert "\x1b" not in out


def test_options_reach_the_audit(forge: Forge, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "root.der").write_bytes(authority(1)[1])
    (tmp_path / "key").write_bytes(X25519PrivateKey.generate().private_bytes_raw())
    (tmp_path / "model").write_bytes(bytes(12))
    refused = {
        ("--head", f"3:{'00' * 32}"): "rollback",
        ("--at", "2020-01-01T00:00:00Z"): "report.chain_validity",
        ("--root", tmp_path / "root.der"): "report.root_key",
        ("--model", tmp_path / "model"): "final_model",
        ("--auditor-key", tmp_path / "key"): "full_receipt",
    }
    for arguments, name in refused.items():
        code, out, _ = invoke(capsys, forge.folder, *arguments)
        assert (code, f"fail            {name} " in out) == (1, True)
    for arguments in (("--tcb-floor", "none"), ("--any-host-data",), ("--last-epsilon",)):
        assert invoke(capsys, forge.folder, *arguments)[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("--head", "3"),
        ("--head", "three:00"),
        ("--at", "yesterday"),
        ("--tcb-floor", "nowhere.yaml"),
        ("--allow", "anything"),
        ("--root", "nowhere.der"),
        ("--model", "nowhere.bin"),
        ("--auditor-key", "nowhere.key"),
        ("--recipient-key", "nowhere.key"),
    ],
)
def test_bad_usage_is_one_line(honest: Forge, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    code, out, err = invoke(capsys, honest.folder, *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)


def test_a_folder_without_receipts_is_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(capsys, tmp_path)[0] == invoke(capsys, tmp_path / "none")[0] == 2
