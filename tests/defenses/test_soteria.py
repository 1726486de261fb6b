"""Soteria: which features are pruned, what is left of the gradient, and that nothing is guaranteed."""

from typing import Any

import pytest
import torch
from torch import nn

from privbench.attacks.leakage.inverting_gradients import InvertingGradients
from privbench.attacks.leakage.observe import Observation
from privbench.attacks.leakage.problem import Problem
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.federation import Federation
from privbench.benchmarks.federation.settings import FederationSettings, LocalWork
from privbench.benchmarks.federation.trainer import Trainer
from privbench.benchmarks.federation.update import Layout
from privbench.benchmarks.tasks.classification import Classification
from privbench.benchmarks.tasks.task import Split
from privbench.defenses import Defense
from privbench.defenses.accounting import RecordLevel
from privbench.defenses.local import Local, Soteria
from privbench.defenses.local.soteria import Representation

CPU = torch.device("cpu")


def conv() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 10)]
    return nn.Sequential(*layers)


def gradient(local: Local, model: nn.Module, records: Split, steps: int = 1) -> torch.Tensor:
    layout, work = Layout.of(model), LocalWork(batch_size=None, steps=steps, share="gradient")
    return (
        Trainer(model, layout, Classification.loss, local, CPU)
        .train(layout.read(model), records, work, 0, None, 0, 1)
        .vector
    )


@pytest.fixture(scope="module")
def records(task: Classification) -> Split:
    return task.data.train.take(torch.arange(3))


@pytest.fixture(scope="module")
def reader() -> Representation:
    model = conv()
    return Representation(model, Soteria().defended(model))


def test_norms_are_those_of_the_jacobian(reader, records):
    r, norms = reader.exact(records.x)
    front = nn.Sequential(*list(reader.model)[:3])
    for b in range(len(records)):
        one = records.x[b : b + 1]
        jacobian: Any = torch.autograd.functional.jacobian(front, one)
        torch.testing.assert_close(norms[b], jacobian.reshape(36, -1).norm(dim=1))
        torch.testing.assert_close(r[b], front(one)[0])


def test_probes_estimate_the_norms(reader, records):
    _, norms = reader.exact(records.x)
    _, found = reader.probed(records.x, 1500, torch.Generator().manual_seed(0))
    # 1 / sqrt(2 * 1500) is 1.8%: five standard errors.
    assert float((found / norms - 1).abs().max()) < 0.09


def test_the_largest_ratios_are_pruned():
    norms = torch.tensor([[1.0, 2.0, 1.0, 0.0], [1.0, 1.0, 0.5, 0.0]])
    r = torch.tensor([[1.0, -8.0, 0.5, 9.0], [1.0, 0.0, 0.1, 9.0]])
    # 2, 4, 0.7, and a feature that doesn't depend on the input.
    assert Soteria(prune=0.25).pruned(r, norms).tolist() == [1]
    assert sorted(Soteria(prune=0.3).pruned(r, norms).tolist()) == [0, 1]
    assert sorted(Soteria(prune=0.75).pruned(r, norms).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("probes", [None, 8])
def test_columns_of_the_layer_are_zero_and_all_else_is_the_gradient(records, probes):
    model = conv()
    plain, found = gradient(Local(), model, records), gradient(Soteria(prune=0.5, probes=probes), model, records)
    layout = Layout.of(model)
    for name, part in layout.views(found).items():
        whole = layout.views(plain)[name]
        if name != "3.weight":
            assert torch.equal(part, whole)
            continue
        columns = (part == 0).all(0)
        assert int(columns.sum()) == 18
        assert torch.equal(part[:, ~columns], whole[:, ~columns])
        assert whole[:, columns].abs().min() > 0


def test_another_layer_by_name(records):
    model = conv()
    found = Layout.of(model).views(gradient(Soteria(prune=0.5, layer="5"), model, records))
    assert int((found["5.weight"] == 0).all(0).sum()) == 4
    assert not (found["3.weight"] == 0).all(0).any()


def test_statistics_and_modes_are_as_without_it(records):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(72, 10))
    plain, found = gradient(Local(), model, records), gradient(Soteria(), model, records)
    start = Layout.of(model).trainable
    assert torch.equal(plain[start:], found[start:]), "probing isn't counted by BatchNorm"
    kept = found[:start] != 0
    assert torch.equal(plain[:start][kept], found[:start][kept]), "nor does it draw from dropout's stream"


@pytest.mark.parametrize(
    ("model", "values", "field"),
    [
        (nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()), {}, "model"),
        (conv(), {"layer": "0"}, "defense.local.layer"),
        (conv(), {"prune": 0.0}, "prune"),
        (conv(), {"prune": 1.1}, "prune"),
        (conv(), {"probes": 0}, "probes"),
    ],
)
def test_what_does_not_fit_is_named(model, values, field):
    with pytest.raises(ConfigError) as caught:
        Soteria(**values).check(model)
    assert caught.value.field == field


def test_attackers_know_the_zeros_and_nothing_is_guaranteed(task, mlp):
    public = Federation(FederationSettings(clients=4, rounds=1), task, mlp, Defense(local=Soteria())).public
    assert public.known("update", 0).pruned
    assert not public.known("aggregate", 0).pruned, "clients prune different features"
    with pytest.raises(ConfigError, match="DP-SGD and a record-level guarantee go together"):
        Defense(local=Soteria(), privacy=RecordLevel(delta=1e-3, clip=1.0, epsilon=8.0))


def test_only_who_adapts_has_the_truth_as_the_best_match(task, records, monkeypatch):
    """The objective at the true record: 0 without the pruned entries, far from it with them."""
    model = conv()
    made = Federation(FederationSettings(clients=4, rounds=1), task, model, Defense(local=Soteria()))
    one = records.take(torch.arange(1))
    seen = Observation(
        gradient(Soteria(), model, one), made.start().model, 1, "update", True, 1, known=made.public.known("update", 0)
    )
    pure = gradient(Local(), model, one)
    problems: list[Problem] = []

    class Stopped(Exception):
        pass

    def stop(public: Any, problem: Problem, *rest: Any) -> None:
        problems.append(problem)
        raise Stopped

    monkeypatch.setattr("privbench.attacks.leakage.family.reconstruct", stop)
    for adapt in (True, False):
        with pytest.raises(Stopped):
            InvertingGradients(adapt=adapt, labels="inferred")._together(
                made.public, [seen], [torch.Generator().manual_seed(0)]
            )
    adapted, plain = (float(p.objective(pure, p.targets[0])) for p in problems)
    assert adapted == pytest.approx(0, abs=1e-5)
    assert plain > 1e-2
