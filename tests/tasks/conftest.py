"""Fixtures of the tests of tasks."""

import os
from pathlib import Path

import pytest
import torch

from privbench.benchmarks.tasks.task import Spec


@pytest.fixture
def published():
    """``published("mitbih")`` skips the test, by name, where that set is not in PRIVBENCH_DATA."""

    def need(name: str) -> Path:
        folder = Path(os.environ.get("PRIVBENCH_DATA", "")) / name
        if "PRIVBENCH_DATA" not in os.environ or not folder.is_dir():
            pytest.skip(f"needs {name} in PRIVBENCH_DATA")
        return folder

    return need


@pytest.fixture
def colour_spec() -> Spec:
    mean, std = torch.tensor([0.5, 0.4, 0.3]).reshape(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).reshape(3, 1, 1)
    return Spec("colour", (3, 12, 10), ("a", "b"), mean, std, "image")
