"""One import package over the top-level directories, complete in pyproject.toml."""

import importlib.util
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("attacks", "benchmarks", "conf", "defenses")


def test_every_package_is_listed_once():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {
        "privbench." + ".".join(path.parent.relative_to(ROOT).parts)
        for room in ROOMS
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert sorted(listed) == sorted(there)


def test_every_module_lies_in_a_package():
    alone = [p for room in ROOMS for p in (ROOT / room).rglob("*.py") if not (p.parent / "__init__.py").exists()]
    assert not alone


def test_typing_links_point_at_the_rooms():
    for room in ("attacks", "benchmarks", "defenses"):
        link = ROOT / ".typing" / "privbench" / room
        assert link.is_symlink()
        assert link.resolve() == ROOT / room
        assert not link.readlink().is_absolute()


def test_ours_is_not_the_benchmarks_that_opacus_installs():
    spec = importlib.util.find_spec("privbench.benchmarks")
    assert spec is not None
    assert Path(str(spec.origin)).parent == ROOT / "benchmarks"


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['privbench', '--help']\n"
        "from privbench.benchmarks.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'hydra', 'matplotlib', 'pandas', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert time.perf_counter() - start < 30  # it answers at all; the imports above are what makes it quick


def test_constraints_name_no_source():
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    assert "@" not in text
