"""The commands and the code of docs/invert.md run, and say what the page says."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/invert.md"
SCRIPT = Path(sys.executable).with_name("privbench")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with the page's files, and its environment."""
    folder = tmp_path_factory.mktemp("desk")
    for block in blocks("python"):
        if found := re.match(r"# (\w+\.py)\n", block):
            (folder / found[1]).write_text(block, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "prepare.py"], check=True, cwd=folder, env=environment)
    return folder, environment


def test_the_commands_of_the_document_work(desk):
    folder, environment = desk
    lines = [line for block in blocks("") for line in block.splitlines() if line.startswith("privbench invert --")]
    ended = [
        subprocess.run([SCRIPT, *shlex.split(line)[1:]], cwd=folder, env=environment, capture_output=True, text=True)
        for line in lines
    ]
    assert [e.returncode for e in ended] == [0, 2]
    assert ended[0].stdout.startswith("attack              DLG")
    found = re.search(r"PSNR +([\d.]+) dB \(best trivial guess: ([\d.]+) dB, mosaic\)", ended[0].stdout)
    assert found is not None
    assert float(found[1]) > 2 * float(found[2])
    names = {p.name for p in (folder / "found").iterdir()}
    assert names == {"reconstructions.npz", "reconstructions.png", "reconstructions.pdf", "report.json"}
    said = next(b for b in blocks("") if b.startswith("privbench invert: the gradient")).removesuffix("...\n")
    assert ended[1].stderr.startswith(said.strip())


def test_the_python_code_of_the_document_works(desk):
    folder, environment = desk
    code = blocks("python")[-1]
    command = [sys.executable, "-c", code]
    path = os.pathsep.join([".", *filter(None, [environment.get("PYTHONPATH")])])
    ended = subprocess.run(command, cwd=folder, env={**environment, "PYTHONPATH": path}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    measured, faults = ended.stdout.splitlines()
    assert float(measured.split()[0]) > 30
    assert faults.startswith("[('order', {'order': ['3.bias', '3.weight'")
