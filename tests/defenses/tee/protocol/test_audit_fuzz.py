"""Whatever lies in a folder, an audit ends with a verdict."""

import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from privbench.defenses.tee.protocol.audit import Audit, audit
from privbench.defenses.tee.protocol.command import lines

from .conftest import CLIENTS, FILES, Forge


def test_nothing_in_a_folder_crashes_it(honest: Forge, tmp_path: Path) -> None:
    chance = random.Random(4)
    for case in range(60):
        folder = tmp_path / str(case)
        shutil.copytree(honest.folder, folder)
        for name in chance.sample(FILES, 2):
            raw = bytearray((folder / name).read_bytes())
            start = chance.randrange(len(raw))
            raw[start : start + chance.choice((0, 1, 40, 10_000))] = chance.randbytes(chance.choice((1, 3, 90)))
            (folder / name).write_bytes(raw)
        assert all(isinstance(line, str) for line in lines(audit(folder)))


@pytest.mark.parametrize("field", ["facts", "privacy", "aggregation", "roster", "measurements", "least_cohort", "run"])
@pytest.mark.parametrize("value", [None, 1, "x", [], {}, [[]], {"_target_": "privbench.x"}, -1, 1e300, ["\ud7ff"]])
def test_no_manifest_crashes_it(forge: Forge, field: str, value: Any) -> None:
    forge.manifest = replace(forge.manifest, **{field: value})
    (forge.folder / "manifest.json").write_bytes(forge.manifest.canonical())
    assert isinstance(audit(forge.folder), Audit)


@pytest.mark.parametrize("name", ["rounds", "clients", "participation", "sampling", "records", "batch", "steps"])
@pytest.mark.parametrize("value", [None, 0, -1, "x", [], [0] * CLIENTS, [1e300] * CLIENTS, 1e300, 2**53 - 1, 1e-300])
def test_no_facts_crash_it(forge: Forge, name: str, value: Any) -> None:
    forge.manifest = replace(forge.manifest, facts={**forge.manifest.facts, name: value})
    (forge.folder / "manifest.json").write_bytes(forge.manifest.canonical())
    assert not audit(forge.folder).accepted
