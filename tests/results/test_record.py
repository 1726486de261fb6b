import importlib.util
import subprocess
from pathlib import Path

from privbench.benchmarks.results import record


def git(folder: Path, *arguments: str) -> str:
    named = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
    return subprocess.run(named, check=True, capture_output=True, text=True).stdout.strip()


def revision_of(code: Path):
    """What ``revision`` says when its module lies at ``code``."""
    spec = importlib.util.spec_from_file_location("copied_record", code)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.revision()


def test_uncommitted_changes_have_a_digest(tmp_path):
    code = tmp_path / "record.py"
    text = Path(record.__file__).read_text()
    code.write_text(text)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "record.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    clean = {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    assert revision_of(code) == clean
    digests = []
    for change in ("# one", "# two", "# one"):
        code.write_text(f"{text}{change}\n")
        found = revision_of(code)
        digests.append(found.pop("diff"))
        assert found == {**clean, "dirty": True}
    assert digests[0] == digests[2] != digests[1]
    assert len(digests[0]) == 12


def test_an_installed_package_is_its_version(tmp_path, monkeypatch):
    code = tmp_path / "record.py"
    code.write_text(Path(record.__file__).read_text())
    git(tmp_path, "init", "-q")  # somebody's repository around a virtual environment
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"privbench": "0.1.0"}[name])
    assert revision_of(code) == {"commit": None, "version": "0.1.0", "dirty": False}
