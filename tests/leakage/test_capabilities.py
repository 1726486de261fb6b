"""What an attack needs is refused by name where a view lacks it: before training, or as a failed attack."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

from privbench.attacks.leakage.attack import AttackFailed, Reconstruction, check
from privbench.attacks.leakage.capabilities import CAPABILITIES, never
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.view import ADVERSARIES
from privbench.benchmarks.measures.leakage import Case, Leakage


@dataclass(frozen=True)
class Needy:
    """Returns the mean, whatever it is given."""

    needs: frozenset[str]

    def reconstruct(self, view: Any, observation: Any, generator: torch.Generator) -> Reconstruction:
        x = torch.zeros(observation.records, *view.public.shape)
        return Reconstruction(x, torch.zeros(len(x), dtype=torch.int64), 1.0, 0, (1.0,), x[None])


def test_who_can_never_have_what():
    denied = {c: {a for a in ADVERSARIES if never(frozenset({c}), a)} for c in CAPABILITIES}
    assert denied == {
        "labels": set(),
        "batch_size": set(),
        "bn_statistics": {"network"},
        "model_modification": set(ADVERSARIES) - {"active_operator"},
    }
    assert never(frozenset({"model_modification"}), "active_operator+2") is None
    assert never(frozenset({"model_modification"}), "server_operator + 2 clients") == "model_modification"


def test_the_configuration_refuses_it_by_name():
    with pytest.raises(ConfigError, match=r"adversaries.*Needy needs: model_modification"):
        Leakage(Needy(frozenset({"model_modification"})), adversaries=("active_operator", "server_operator"))
    with pytest.raises(ConfigError, match=r"attack.*\['telepathy'\]"):
        Leakage(Needy(frozenset({"telepathy"})))


@pytest.mark.parametrize("capability", [*CAPABILITIES])
def test_a_view_that_lacks_it_fails_by_name(scene, capability):
    s = scene(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), 2)
    view = s.view("active_operator")
    bare = replace(s.observation(view), counted=False)
    with pytest.raises(AttackFailed, match=f"active_operator lacks {capability}"):
        check(view, bare, frozenset({capability}))
    check(view, bare)


@pytest.mark.parametrize(
    ("needs", "status"),
    [({"labels", "batch_size"}, None), ({"bn_statistics"}, "failed"), ({"model_modification"}, "failed")],
)
def test_the_measure_declares_what_it_can_and_fails_the_rest(scene, needs, status):
    """Labels and the batch size are side information; nobody can tell an attack a model that wasn't sent."""
    s = scene(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), 2)
    measure = Leakage(Needy(frozenset(needs)), adversaries=("active_operator",))
    rows, _ = measure.measure(Case(s.view("active_operator"), 1, 0, s.truth, torch.Generator()))
    row = next(r for r in rows if r["metric"] == "psnr_db")
    assert row.get("status") == status
    assert status is None or row["reason"].startswith(f"active_operator lacks {min(needs)}")


def test_running_statistics_that_travel_are_a_capability(scene):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
    s = scene(model, 2)
    check(s.view(), s.observation(), frozenset({"bn_statistics"}))
