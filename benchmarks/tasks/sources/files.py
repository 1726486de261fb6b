"""Where data files are, whether they are the right ones, and how they get there.

A checksum is written in hexadecimal; its length tells MD5 (32) from SHA-256 (64).
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np

from privbench.benchmarks.build import ConfigError

TIMEOUT = 30.0
"""Seconds to wait for a server's next bytes."""

_verified: set[tuple[Path, int, int, str]] = set()


class DataMissing(ConfigError):
    """A data file is in none of the places where it is looked for."""


def find(
    name: str,
    filename: str,
    checksum: str,
    data_dir: str | None = None,
    *,
    urls: Sequence[str] = (),
    hint: str = "",
    folders: Sequence[str] = (),
) -> Path:
    """A verified file of a data set; fetched from its publisher into ``data_dir`` or the cache if it is nowhere.

    Args:
        name: of the data set, which is also the folder looked into first.
        filename: of the file.
        checksum: what the file must have.
        data_dir: looked into before ``PRIVBENCH_DATA`` and the cache.
        urls: where the publisher offers it.
        hint: how to get it where no URL does.
        folders: further folders under each place, as other software lays them out.

    Raises:
        DataMissing: if it is nowhere and can't be fetched.
        ConfigError: if the file found is not the right one.
    """
    found = look(name, filename, checksum, data_dir, folders)
    if found is not None:
        return found
    target = (Path(data_dir) if data_dir else cache()) / name / filename
    failures = [f"{url} ({reason})" for url in urls if (reason := _fetch(url, target, checksum))]
    if len(failures) < len(urls):
        return target
    looked = ", ".join(str(place) for place in places(data_dir))
    get = hint or (f"download {failures[0]}" if failures else "see docs/tasks.md")
    what = f"{filename} ({_kind(checksum)} {checksum})"
    raise DataMissing(
        "data_dir", data_dir, f"{what} is in none of {looked}, nor in a folder {name} there; to get it: {get}"
    )


def look(
    name: str, filename: str, checksum: str, data_dir: str | None = None, folders: Sequence[str] = ()
) -> Path | None:
    """The file if it is in a place, verified; never fetched.

    Raises:
        ConfigError: if the file found is not the right one.
    """
    for place in places(data_dir):
        for folder in (name, *folders, "."):
            path = place / folder / filename
            if path.is_file():
                _verify(path, checksum)
                return path
    return None


def places(data_dir: str | None = None) -> list[Path]:
    """Where files are looked for, in this order: ``data_dir``, ``$PRIVBENCH_DATA``, the user's cache."""
    named = [data_dir, os.environ.get("PRIVBENCH_DATA")]
    return [*(Path(p).expanduser() for p in named if p), cache()]


def cache() -> Path:
    """``privbench`` under ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "privbench"


def verify_arrays(what: str, sha256: str, *arrays: np.ndarray) -> None:
    """Check the bytes of arrays that another package ships.

    Raises:
        ConfigError: if that package has changed its data.
    """
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    if digest.hexdigest() != sha256:
        raise ConfigError("task.source", what, f"data with SHA-256 {sha256}, found {digest.hexdigest()}")


def _verify(path: Path, checksum: str) -> None:
    status = path.stat()
    key = (path.resolve(), status.st_size, status.st_mtime_ns, checksum)
    if key in _verified:
        return
    found = _digest(path, checksum)
    if found != checksum:
        raise ConfigError("data_dir", str(path), f"a file with {_kind(checksum)} {checksum}, found {found}; remove it")
    _verified.add(key)


def _fetch(url: str, target: Path, checksum: str) -> str:
    """Download to a temporary file, verify it, then move it in one step; returns why it failed, or nothing."""
    partial = None
    try:
        with urlopen(Request(url, headers={"User-Agent": "privbench"}), timeout=TIMEOUT) as response:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
            with os.fdopen(handle, "wb") as out:
                shutil.copyfileobj(response, out)
        if (found := _digest(Path(partial), checksum)) != checksum:
            return f"{_kind(checksum)} {found}"
        os.chmod(partial, 0o644)  # mkstemp's 0600 would shut colleagues out of a shared folder
        os.replace(partial, target)
        partial = None
    except (OSError, HTTPException) as error:
        return str(error)
    finally:
        if partial is not None:
            Path(partial).unlink(missing_ok=True)
    return ""


def _kind(checksum: str) -> str:
    return "MD5" if len(checksum) == 32 else "SHA-256"


def _digest(path: Path, checksum: str) -> str:
    # MD5 is what the publishers give; it guards against mistakes, not against an adversary.
    algorithm = (lambda: hashlib.md5(usedforsecurity=False)) if len(checksum) == 32 else hashlib.sha256
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
