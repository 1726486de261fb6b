import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privbench.benchmarks.progress import Progress
from privbench.benchmarks.run import run
from privbench.benchmarks.sweep import compose

Done = tuple[dict[str, Any], list[dict[str, Any]], Path]


@pytest.fixture
def do() -> Callable[..., Done]:
    """``do(folder, *overrides)``: a complete run's manifest, metrics and folder."""

    def complete(folder: Path, *overrides: str) -> Done:
        prepared = compose([*overrides, f"results_dir={folder}"])
        outcome = run(prepared, {"task": "digits"}, Progress("test"))
        assert outcome.status == "complete", outcome.note
        rows = [json.loads(line) for line in (prepared.path / "metrics.jsonl").read_text().splitlines()]
        return json.loads((prepared.path / "manifest.json").read_text()), rows, prepared.path

    return complete
