"""Pruned and quantised updates: what is sent, what attacks are told, and that no guarantee is claimed."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.federation import Federation
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.settings import FederationSettings
from privbench.benchmarks.federation.update import Layout, Update
from privbench.benchmarks.tasks.classification import Classification
from privbench.defenses import Defense
from privbench.defenses.accounting import RecordLevel
from privbench.defenses.local import Local, Pruning, Quantisation

LAYOUT = Layout(("w", "b", "running"), ((30, 30), (100,), (50,)), 2)


def update(seed: int = 0) -> Update:
    vector = torch.randn(LAYOUT.size, generator=torch.Generator().manual_seed(seed))
    return Update(vector, LAYOUT, "update", 5)


def sent(by: Local, given: Update, seed: int = 0) -> torch.Tensor:
    return by.send(given, 0, None, stream(seed, "send", 1, 0)).vector


def test_pruning_sends_the_largest_parameters_and_whole_buffers():
    given = update()
    before, found = given.vector.clone(), sent(Pruning(keep=0.1), given)
    assert torch.equal(given.vector, before), "the client's own update is not changed"
    p = LAYOUT.trainable
    kept = found[:p] != 0
    assert int(kept.sum()) == 100
    assert torch.equal(found[:p][kept], before[:p][kept])
    assert before[:p][kept].abs().min() > before[:p][~kept].abs().max()
    assert torch.equal(found[p:], before[p:])
    assert torch.equal(sent(Pruning(keep=1.0), given), before)


def test_quantised_entries_lie_on_few_levels_and_are_right_on_average():
    given = update()
    every = torch.stack([sent(Quantisation(bits=3), given, seed) for seed in range(400)])
    assert torch.equal(every[0], sent(Quantisation(bits=3), given, 0)), "the run's own stream"
    for name, part in LAYOUT.views(every[0]).items():
        step = given.tensors[name].abs().max() / 3
        levels = part / step
        assert torch.allclose(levels, levels.round(), atol=1e-5)
        assert levels.abs().max() <= 3
    step = given.vector.abs().max() / 3
    # The mean of 400 roundings, each within a step: five standard errors.
    assert (every.mean(0) - given.vector).abs().max() < 5 * step / 2 / 20


@pytest.mark.parametrize("by", [Pruning(keep=0.5), Quantisation(bits=4)])
def test_what_is_not_finite_stays_so_and_zero_stays_zero(by):
    given = update()
    given.vector[7] = torch.nan
    assert torch.isnan(sent(by, given)[7])
    zero = replace(given, vector=torch.zeros_like(given.vector))
    assert torch.equal(sent(by, zero), zero.vector)


@pytest.mark.parametrize(
    ("kind", "values", "field"),
    [(Pruning, {"keep": 0.0}, "keep"), (Pruning, {"keep": 1.5}, "keep"), (Quantisation, {"bits": 1}, "bits")],
)
def test_bad_settings_are_refused(kind: Any, values: dict[str, Any], field: str):
    with pytest.raises(ConfigError) as caught:
        kind(**values)
    assert caught.value.field == field


def test_attacks_are_told_what_was_pruned_and_no_guarantee_can_be_claimed(task: Classification, mlp: nn.Module):
    settings = FederationSettings(clients=4, rounds=1)
    public = Federation(settings, task, mlp, Defense(local=Pruning())).public
    assert public.known("update", 0).pruned
    assert not public.known("aggregate", 0).pruned, "a sum of differently pruned updates is not"
    assert not Federation(settings, task, mlp, Defense(local=Quantisation())).public.known("update", 0).pruned
    with pytest.raises(ConfigError, match="DP-SGD and a record-level guarantee go together"):
        Defense(local=Pruning(), privacy=RecordLevel(delta=1e-3, clip=1.0, epsilon=8.0))
