"""Domains against libvirt's own schema, where it is installed."""

import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from privbench.benchmarks.conform import ConfigError

VARIABLE = "LIBVIRT_SCHEMAS"
USUAL = (Path("/usr/share/libvirt/schemas"), Path("/usr/local/share/libvirt/schemas"))


@dataclass(frozen=True)
class Validation:
    """What came out for one domain: ``valid``, ``invalid`` or ``not checked``, and why."""

    file: str
    outcome: str
    why: str


def schemas() -> Path | None:
    """The folder of libvirt's schemas: the one that the environment variable names, or the usual place.

    Raises:
        ConfigError: the variable names a folder without them.
    """
    named = os.environ.get(VARIABLE)
    if named is not None:
        if not (Path(named) / "domain.rng").is_file():
            raise ConfigError(VARIABLE, named, "a folder with libvirt's domain.rng")
        return Path(named)
    return next((folder for folder in USUAL if (folder / "domain.rng").is_file()), None)


def validate(domains: Iterable[Path]) -> list[Validation]:
    """Each domain against ``domain.rng`` by ``xmllint``, as libvirt's ``virt-xml-validate`` does it."""
    folder, program = schemas(), shutil.which("xmllint")
    known = folder is not None and "sev-snp" in _read(folder / "domaincommon.rng")
    found = []
    for path in domains:
        if folder is None:
            found.append(Validation(path.name, "not checked", f"no schemas of libvirt here; {VARIABLE} names a folder"))
        elif program is None:
            found.append(Validation(path.name, "not checked", "no xmllint here"))
        elif not known and "sev-snp" in _read(path):
            found.append(Validation(path.name, "not checked", f"{folder} is older than libvirt 10.5: no SEV-SNP yet"))
        else:
            found.append(_one(program, folder / "domain.rng", path))
    return found


def _one(program: str, schema: Path, path: Path) -> Validation:
    ended = subprocess.run(
        [program, "--noout", "--nonet", "--relaxng", str(schema), str(path)], capture_output=True, text=True, timeout=60
    )
    if ended.returncode:
        return Validation(path.name, "invalid", " ".join(ended.stderr.split())[:500])
    return Validation(path.name, "valid", str(schema))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
