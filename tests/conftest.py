"""Fixtures of all tests: one thread, the data's place, and small federations."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from privbench.benchmarks.federation import processes as engines
from privbench.benchmarks.federation.federation import Federation
from privbench.benchmarks.federation.loop import Round
from privbench.benchmarks.federation.server import RoundContext
from privbench.benchmarks.federation.settings import FederationSettings, LocalWork
from privbench.benchmarks.federation.update import Layout, Update
from privbench.benchmarks.tasks.classification import Classification
from privbench.benchmarks.tasks.models.architecture import make
from privbench.benchmarks.tasks.models.dense import MLP
from privbench.benchmarks.tasks.sources import Digits
from privbench.benchmarks.tasks.triggers import Patch

_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
if _DATA.is_dir():
    os.environ.setdefault("PRIVBENCH_DATA", str(_DATA))
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """As at the start, whatever the test before it left: the last bits of a sum depend on the number."""
    torch.set_num_threads(1)


class Console:
    """Runs commands one after the other, as the console script does, without its start of seconds (``warm.py``)."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self._server = server

    def run(self, arguments: Sequence[str], cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """``privbench ARGUMENTS`` in a folder and an environment of its own; -signal is the status of one killed."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            asked = {"arguments": list(arguments), "cwd": str(cwd), "env": env, "out": str(out), "err": str(err)}
            print(json.dumps(asked), file=self._server.stdin, flush=True)
            answer = self._server.stdout.readline()
            assert answer, "the server of commands has ended"
            return subprocess.CompletedProcess(list(arguments), int(answer), out.read_text(), err.read_text())


@pytest.fixture(scope="session")
def console() -> Iterator[Console]:
    command = [sys.executable, Path(__file__).with_name("warm.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield Console(server)


@pytest.fixture(scope="session")
def task() -> Classification:
    """200 digits for training; the trigger is a bright 2x2 corner, its target 0."""
    return Classification(source=Digits(), trigger=Patch(size=2), records=200)


@pytest.fixture
def mlp(task: Classification) -> nn.Module:
    return make(MLP(hidden=(16,)), task.spec, seed=0)


@dataclass
class Trained:
    """What a federation did."""

    federation: Federation
    rounds: list[Round]
    models: list[Tensor] = field(default_factory=list)

    @property
    def model(self) -> Tensor:
        return self.models[-1]


@pytest.fixture
def federate(task: Classification, mlp: nn.Module) -> Callable[..., Trained]:
    """Run a federation of digits: ``local`` are settings of the clients' work, the rest is the federation's."""

    def run(workers: int = 1, local: dict[str, Any] | None = None, **options: Any) -> Trained:
        names = ("defense", "poisoner", "watched", "keep", "model", "task", "distribution", "seed")
        own = {k: options.pop(k) for k in names if k in options}
        settings = FederationSettings(**{"clients": 6, "rounds": 2, **options}, local=LocalWork(**(local or {})))
        federation = Federation(settings, **{"task": task, "model": mlp, **own})
        side = federation.client_side()
        engine = engines.start(side, workers, torch.device("cpu"), federation.defense.channel.apart)
        done = Trained(federation, [])
        try:
            for finished in federation.run(federation.start(), side, engine):
                done.rounds.append(finished)
                done.models.append(finished.state.model.clone())
        finally:
            engine.close()
            side.channel.close()
        return done

    return run


@pytest.fixture
def context() -> Callable[..., RoundContext]:
    """``context(size)``: a round of vectors of ``size`` parameters and ``buffers`` buffers, equal weights."""

    def make_context(size: int = 3, buffers: int = 0, **changes: Any) -> RoundContext:
        shapes = ((size,), (buffers,)) if buffers else ((size,),)
        layout = Layout(("w", "b")[: len(shapes)], shapes, 1)
        fields = {
            "seed": 0,
            "round": 1,
            "invited": (),
            "expected": 1.0,
            "weighting": "equal",
            "layout": layout,
            "kind": "update",
            "learning_rate": 0.1,
            "plan": None,
            "watched": frozenset(),
        }
        return RoundContext(**{**fields, **changes})

    return make_context


@pytest.fixture
def updates() -> Callable[..., list[Update]]:
    """``updates(matrix, records)``: a cohort of one update a row."""

    def make_updates(matrix: Tensor, records: list[int] | None = None) -> list[Update]:
        layout = Layout(("w",), ((matrix.shape[1],),), 1)
        counts = records or [1] * len(matrix)
        return [Update(row.clone(), layout, "update", n) for row, n in zip(matrix, counts, strict=True)]

    return make_updates
