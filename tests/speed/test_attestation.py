"""The benchmark of the attestation verifier runs, and refuses to time evidence that doesn't hold."""

import sys
from pathlib import Path

import pytest

from privbench.benchmarks.speed import attestation


def test_both_caches_are_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["attestation", "--repeats", "2"])
    attestation.main()
    out = capsys.readouterr().out
    assert "certificates cached" in out
    assert "certificates parsed anew" in out


def test_refused_evidence_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "report").write_bytes(bytes(1184))
    monkeypatch.setattr(sys, "argv", ["x", "--report", f"{tmp_path}/report", "--certs", str(tmp_path)])
    with pytest.raises(SystemExit, match="refused"):
        attestation.main()
