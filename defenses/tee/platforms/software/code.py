"""What the software platform measures: the code that it then loads, and the names of what that code imports.

The measurement is SHA-384 over every Python file of the suite, the program's name, the interpreter and the versions of
the packages that the suite requires. Those packages' own files are not read: a change inside torch goes unnoticed.
"""

import hashlib
import importlib.metadata
import importlib.util
import platform
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

PACKAGES = ("attacks", "benchmarks", "defenses")
_DOMAIN = b"privbench software platform measurement 1"

Files = Mapping[str, bytes]


def installed() -> dict[str, bytes]:
    """The suite's own Python files by path below ``privbench/``, as this process would import them."""
    files: dict[str, bytes] = {}
    for package in PACKAGES:
        found = importlib.util.find_spec(f"privbench.{package}")
        assert found is not None  # this module is in one of them
        assert found.submodule_search_locations is not None
        root = Path(next(iter(found.submodule_search_locations)))
        for path in sorted(root.rglob("*.py")):
            files[f"{package}/{path.relative_to(root).as_posix()}"] = path.read_bytes()
    return files


def measure(files: Files, program: str) -> bytes:
    """48 bytes.

    Args:
        files: by path, as :func:`installed` gives them.
        program: ``module:function`` that the guest runs.
    """
    digest = hashlib.sha384()
    for part in (_DOMAIN, program.encode(), *(p.encode() for p in dependencies())):
        _absorb(digest, part)
    for path in sorted(files):
        _absorb(digest, path.encode())
        _absorb(digest, files[path])
    return digest.digest()


@lru_cache(maxsize=8)
def expected(program: str) -> bytes:
    """The measurement that a relying party demands of ``program``: that of the code installed with itself."""
    return measure(installed(), program)


@lru_cache(maxsize=1)
def dependencies() -> tuple[str, ...]:
    """Interpreter, processor kind, and ``name==version`` of what the suite requires, sorted."""
    try:
        required = importlib.metadata.requires("privbench") or []
    except importlib.metadata.PackageNotFoundError:
        required = []
    names = {re.split(r"[\s<>=!~;\[(]", r, maxsplit=1)[0].lower() for r in required if "extra ==" not in r}
    versions = (f"{name}=={_version(name)}" for name in sorted(names))
    return (f"python=={platform.python_version()}", f"machine=={platform.machine()}", *versions)


def write(files: Files, folder: Path) -> None:
    """Lay ``files`` out as the import package ``privbench`` below ``folder``."""
    for name, content in files.items():
        path = folder / "privbench" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def outside(folder: Path, modules: Iterable[tuple[str, str | None]]) -> list[str]:
    """Modules of the suite that were not loaded from ``folder``, out of pairs of name and file."""
    root = str(folder.resolve()) + "/"
    own = ((n, f) for n, f in modules if n.startswith("privbench.") and f is not None)
    return sorted(name for name, file in own if not str(Path(file).resolve()).startswith(root))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _absorb(digest: "hashlib._Hash", part: bytes) -> None:
    digest.update(len(part).to_bytes(8, "big") + part)
