"""Steered training: anomaly losses, projections and masks do to each step what their papers say."""

import types
from dataclasses import asdict
from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from privbench.attacks.poisoning import Backdoor, ConstrainAndScale, Imitation, Neurotoxin, ProjectedDescent, Schedule
from privbench.attacks.poisoning.steering import Steering
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation import attested
from privbench.benchmarks.federation.client import Job, Turn
from privbench.benchmarks.federation.federation import Federation
from privbench.benchmarks.federation.settings import FederationSettings, LocalWork
from privbench.benchmarks.federation.trainer import Trainer
from privbench.benchmarks.federation.update import Layout
from privbench.benchmarks.tasks.classification import Classification
from privbench.benchmarks.tasks.models.architecture import make
from privbench.benchmarks.tasks.models.dense import MLP
from privbench.benchmarks.tasks.models.small_cnn import SmallCNN
from privbench.defenses.local import Local
from privbench.defenses.tee.protocol import proof, trainer

ARCHITECTURES = {"dense": MLP(hidden=(16,)), "convolutions": SmallCNN(width=4, hidden=8)}
PLAIN = LocalWork(learning_rate=0.1, epochs=2)
LOADED = LocalWork(learning_rate=0.1, epochs=2, momentum=0.9, weight_decay=0.01, proximal=0.5)


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, task: Classification) -> nn.Module:
    return make(ARCHITECTURES[request.param], task.spec, seed=0)


@pytest.fixture
def train(task: Classification) -> Any:
    """The parameters' part of one client's update, of the first 40 records."""

    def run(model: nn.Module, steering: Steering | None, work: LocalWork = PLAIN, clean: Any = None) -> Tensor:
        layout = Layout.of(model)
        own = Trainer(model, layout, Classification.loss, Local(), torch.device("cpu"))
        records = task.data.train.take(torch.arange(40))
        made = own.train(layout.read(model), records, work, 0, None, 0, 1, None, steering, clean)
        return made.vector[: layout.trainable]

    return run


def step(weights: Tensor, gradient: Tensor) -> Any:
    return types.SimpleNamespace(weights=weights.clone(), gradient=gradient.clone())


# Constrain and scale


@pytest.mark.parametrize("anomaly", ["distance", "cosine"])
def test_the_anomaly_loss_is_differentiable(anomaly):
    weights, anchor = (torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).unbind()
    loss = ConstrainAndScale(anomaly=anomaly).loss
    assert torch.autograd.gradcheck(lambda w: loss(w, anchor), weights.requires_grad_())
    expected = (
        (weights - anchor).norm() if anomaly == "distance" else 1 - weights @ anchor / (weights.norm() * anchor.norm())
    )
    torch.testing.assert_close(loss(weights, anchor), expected)
    torch.testing.assert_close(float(loss(anchor, anchor)), 0.0)


@pytest.mark.parametrize("alpha", [0.2, 0.7])
@pytest.mark.parametrize("anomaly", ["distance", "cosine"])
def test_a_step_follows_both_losses(anomaly, alpha):
    """alpha L_class + (1 - alpha) L_anomaly, with L_anomaly's gradient by hand."""
    w, a, g = torch.randn(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).unbind()
    at = step(w, g)
    ConstrainAndScale(alpha=alpha, anomaly=anomaly).gradient(at, a, g[:0])
    distance = (w - a) / (w - a).norm()
    cosine = (w @ a) * w / (w.norm() ** 3 * a.norm()) - a / (w.norm() * a.norm())
    torch.testing.assert_close(at.gradient, alpha * g + (1 - alpha) * (distance if anomaly == "distance" else cosine))
    assert torch.equal(at.weights, w)


@pytest.mark.parametrize("anomaly", ["distance", "cosine"])
def test_with_a_weight_of_one_it_trains_as_agreed(train, model, anomaly):
    assert torch.equal(train(model, ConstrainAndScale(alpha=1.0, anomaly=anomaly), LOADED), train(model, None, LOADED))


def test_the_distance_loss_keeps_updates_short(train, model):
    """To within a step of it: its gradient has length one however near the anchor is."""
    work = LocalWork(learning_rate=0.002, epochs=20)
    free, short = (float(train(model, ConstrainAndScale(alpha=a), work).norm()) for a in (1.0, 0.1))
    assert short < 0.2 * free


# Projection


@pytest.mark.parametrize("work", [PLAIN, LOADED], ids=["plain", "momentum and penalties"])
def test_projected_updates_are_no_longer_than_the_radius(train, model, work):
    free = float(train(model, None, work).norm())
    for radius in (0.01, 0.3 * free):
        length = float(train(model, ProjectedDescent(radius), work).norm())
        assert length <= radius * (1 + 1e-5)
        assert length > 0.9 * radius, "it goes to the edge, since it would go farther"
    assert torch.equal(train(model, ProjectedDescent(1e3), work), train(model, None, work))


def test_a_projection_is_the_nearest_point_of_the_ball():
    anchor = torch.tensor([1.0, 2.0])
    outside, inside = step(anchor + torch.tensor([3.0, 4.0]), anchor), step(anchor + 0.1, anchor)
    for at in (outside, inside):
        ProjectedDescent(2.5).settle(at, anchor)
    torch.testing.assert_close(outside.weights, torch.tensor([2.5, 4.0]))
    assert torch.equal(inside.weights, anchor + 0.1)


@pytest.mark.parametrize("steering", [ProjectedDescent(0.05), Neurotoxin(radius=0.05)])
def test_every_round_is_projected_before_it_is_boosted(federate, steering):
    options = {"clients": 4, "rounds": 2, "watched": frozenset({3})}
    done = federate(**options, poisoner=Backdoor(steering=steering, boost=3.0))
    for finished in done.rounds:
        sent = finished.views["server_operator"].rounds[-1].updates[3].vector
        assert float(sent.norm()) == pytest.approx(0.15, rel=1e-3)


# Neurotoxin


def clean_gradient(model: nn.Module, records: Any) -> Tensor:
    """In the layout's order, as autograd gives it."""
    loss = Classification.loss(model, (records.x, records.y))
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, [*model.parameters()])])


@pytest.mark.parametrize("work", [PLAIN, LOADED], ids=["plain", "momentum and penalties"])
@pytest.mark.parametrize("spared", [0.05, 0.6])
def test_what_honest_clients_move_is_left_alone(train, task, model, spared, work):
    """The top-k of the clean gradient at the received model; the trainer's own order of entries is another."""
    clean = task.data.train.take(torch.arange(100, 140))
    large = clean_gradient(model, clean).abs()
    k = int(spared * len(large))
    moved = train(model, Neurotoxin(spared=spared), work, clean)
    assert not moved[large.topk(k).indices].any()
    free = train(model, None, work)
    # Of the others those stay that have no gradient in training either: a dead unit's, a corner pixel's.
    assert int((moved != 0).sum()) >= 0.95 * (int((free != 0).sum()) - k)
    assert bool(moved.any())


def test_a_mask_of_nothing_changes_nothing(train, model):
    assert torch.equal(train(model, Neurotoxin(spared=0.0), LOADED), train(model, None, LOADED))


def test_so_many_parameters_are_spared():
    clean = torch.arange(100.0)
    for spared, count in ((0.05, 5), (0.29, 29), (0.555, 55), (0.001, 0)):
        at = step(torch.zeros(100), torch.ones(100))
        Neurotoxin(spared=spared).gradient(at, at.weights, -clean)
        assert at.gradient.tolist() == [1.0] * (100 - count) + [0.0] * count


def test_looking_at_clean_records_leaves_no_trace(train, task):
    """Neither a gradient, nor statistics of BatchNorm, nor a layer's mode."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 10))
    clean = task.data.train.take(torch.arange(100, 140))
    layout = Layout.of(model)
    own: Any = Trainer(model, layout, Classification.loss, Local(), torch.device("cpu"))
    given = (layout.read(model), task.data.train.take(torch.arange(40)), PLAIN, 0, None, 0, 1, None)
    honest = own.train(*given)
    steered = own.train(*given, Neurotoxin(spared=0.0), clean)
    assert torch.equal(honest.vector, steered.vector)
    assert all(module.training for module in own.model.modules())


def test_the_federations_client_spares_what_its_own_true_records_move(federate, task):
    """The mask is of the records before they were poisoned."""
    done = federate(clients=4, rounds=1, watched=frozenset({3}), poisoner=Backdoor(steering=Neurotoxin(spared=0.3)))
    federation = done.federation
    large = clean_gradient(federation.model, task.data.train.take(federation.shares[3])).abs()
    sent = done.rounds[0].views["server_operator"].rounds[0].updates[3].vector
    assert not sent[large.topk(int(0.3 * len(large))).indices].any()


# What comes with it


def test_steering_is_other_code(federate):
    for steering in (ConstrainAndScale(), ProjectedDescent(), Neurotoxin()):
        assert isinstance(steering, Steering)
        poisoner = Backdoor(steering=steering)
        assert poisoner.tampers
        assert poisoner.forges == "code"
        assert list(poisoner.patches(0.5)) == ["defenses/tee/protocol/trainer.py"]
        with pytest.raises(ConfigError) as caught:
            federate(poisoner=poisoner, local={"share": "gradient", "batch_size": None})
        assert caught.value.field == "poisoning.steering"
        with pytest.raises(ConfigError):
            Imitation(steering=steering)
    assert Backdoor(steering=Neurotoxin(), evidence="relayed", boost=2.0).forges == "message"


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (ConstrainAndScale, "alpha", 0.0),
        (ConstrainAndScale, "alpha", 1.1),
        (ProjectedDescent, "radius", 0.0),
        (ProjectedDescent, "radius", inf),
        (Neurotoxin, "spared", 1.0),
        (Neurotoxin, "spared", -0.1),
        (Neurotoxin, "radius", 0.0),
    ],
)
def test_out_of_range(kind, field, value):
    with pytest.raises(ConfigError) as caught:
        kind(**{field: value})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("steering", "boost"),
    [(ConstrainAndScale(alpha=0.3), "replace"), (ProjectedDescent(0.05), 1.0), (Neurotoxin(radius=0.1), 2.0)],
    ids=["constrain", "project", "neurotoxin"],
)
def test_the_tampered_guest_steers_as_the_plaintext_client(task, mlp, steering, boost):
    poisoner = Backdoor(fraction=1.0, steering=steering, boost=boost, schedule=Schedule(every=2))
    made = Federation(FederationSettings(clients=4, rounds=2), task, mlp, poisoner=poisoner, architecture=MLP((16,)))
    side = made.client_side()
    side.received.copy_(made.start().model)
    (source,) = poisoner.patches(made.owned).values()
    patched = types.ModuleType("patched")
    exec(source, patched.__dict__)
    layout = {"names": list(made.layout.names), "shapes": made.layout.shapes, "parameters": made.layout.parameters}
    manifest: Any = types.SimpleNamespace(layout=layout, facts=asdict(made.facts), privacy=None, seed=0)
    settings, turn = proof.settings_bytes(attested.training(made)), Turn(side, Job(3, 1, "update"))
    given: Any = (side.received, turn.records(), 3, 1, 1)
    honest = trainer.Training(manifest, settings).update(*given)
    crafted = patched.Training(manifest, settings).update(*given)
    assert not torch.equal(crafted.vector, honest.vector)
    # The guest has the poisoned records alone: their gradient tells it what to spare.
    assert torch.equal(crafted.vector, turn.update(side.received).vector) != steering.looks
