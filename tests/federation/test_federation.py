import gc
import pickle
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from privbench.attacks.poisoning import Backdoor, Poisoner
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation import processes as engines
from privbench.benchmarks.federation.federation import Federation
from privbench.benchmarks.federation.server import ServerAdam, ServerSGD, ServerYogi
from privbench.benchmarks.federation.settings import FederationSettings, LocalWork
from privbench.benchmarks.federation.update import Layout, Update
from privbench.benchmarks.federation.view import ADVERSARIES
from privbench.benchmarks.tasks.classification import Classification
from privbench.benchmarks.tasks.models.architecture import make
from privbench.benchmarks.tasks.models.dense import MLP, LogisticRegression
from privbench.benchmarks.tasks.models.small_cnn import SmallCNN
from privbench.benchmarks.tasks.partition import Quantity
from privbench.defenses import Defense
from privbench.defenses.accounting import ClientLevel, RecordLevel
from privbench.defenses.aggregation import ClippedMean, CoordinateMedian, Diverged, Mean, Rule
from privbench.defenses.local import DPSGD
from privbench.defenses.release import CentralGaussian


def central(**options) -> Defense:
    privacy = ClientLevel(**{"delta": 1e-3, "clip": 1.0, "noise_multiplier": 1.0, **options})
    return Defense(aggregation=ClippedMean(), release=CentralGaussian(), privacy=privacy)


def local(**options) -> Defense:
    privacy = RecordLevel(**{"delta": 1e-3, "clip": 1.0, "noise_multiplier": 1.0, **options})
    return Defense(local=DPSGD(), privacy=privacy)


def batchnorm() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 10))


def dropping() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Dropout(0.3), nn.Linear(12, 10))


CASES = {
    "fedavg": {},
    "fixed": {"participation": 0.5, "dropout": 0.3, "rounds": 3},
    "poisson": {"participation": 0.5, "sampling": "poisson", "rounds": 3},
    "gradient": {"local": {"share": "gradient", "batch_size": None}},
    "adam": {"server": ServerAdam(), "local": {"momentum": 0.5, "proximal": 0.1}},
    "batchnorm": {"model": batchnorm, "weighting": "equal"},
    "dropout_layer": {"model": dropping},
    "median": {"defense": Defense(aggregation=CoordinateMedian())},
    "dp_local": {"defense": local()},
    "dp_central": {"defense": central(), "participation": 0.5},
    "backdoor": {"poisoner": Backdoor(clients=2, boost="replace"), "local": {"learning_rate": 0.01}},
}


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_do_not_depend_on_workers(federate, case):
    options = dict(CASES[case])
    if "model" in options:
        options["model"] = options["model"]()
    one, two, three = (federate(workers, **options) for workers in (1, 2, 3))
    for other in (two, three):
        assert all(torch.equal(a, b) for a, b in zip(one.models, other.models, strict=True))
        assert [r.answered for r in one.rounds] == [r.answered for r in other.rounds]
    start = one.federation.start().model
    assert not torch.equal(one.model, start)


def test_another_seed_gives_another_model(federate):
    assert not torch.equal(federate(seed=1).model, federate(seed=2).model)


def test_a_conv_net_does_not_depend_on_workers(federate, task):
    model = make(SmallCNN(width=4, hidden=8), task.spec, 0)
    one, two = (federate(workers, model=model, rounds=1) for workers in (1, 2))
    assert torch.equal(one.model, two.model)


def test_one_full_batch_step_of_equal_clients_is_gradient_descent(federate, task, mlp):
    """FedAvg with one local step is centralised gradient descent on all records (McMahan et al. 2017, section 2)."""
    done = federate(clients=5, rounds=3, local={"batch_size": None, "learning_rate": 0.3})
    train = task.data.train
    assert {len(s) for s in done.federation.shares} == {40}
    layout = Layout.of(mlp)
    optimizer = torch.optim.SGD(mlp.parameters(), 0.3)
    for model in done.models:
        optimizer.zero_grad()
        Classification.loss(mlp, (train.x, train.y)).backward()
        optimizer.step()
        torch.testing.assert_close(model, layout.read(mlp), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weighting", ["records", "equal"])
def test_weights(federate, task, weighting):
    uneven = replace(task, partition=Quantity(sizes=(10, 20)))
    work = {"batch_size": None, "share": "gradient", "learning_rate": 0.1}
    done = federate(task=uneven, clients=3, rounds=1, weighting=weighting, local=work)
    federation = done.federation
    gradients = []
    for share in federation.shares:
        records = task.data.train.take(share)
        loss = Classification.loss(federation.model, (records.x, records.y))
        found = torch.autograd.grad(loss, [*federation.model.parameters()])
        gradients.append(torch.cat([g.reshape(-1) for g in found]))
    sizes = torch.tensor([float(len(s)) for s in federation.shares])
    assert sizes.tolist() == [10, 20, 170]
    weights = sizes / sizes.sum() if weighting == "records" else torch.full((3,), 1 / 3)
    expected = federation.start().model - 0.1 * (weights[:, None] * torch.stack(gradients)).sum(0)
    torch.testing.assert_close(done.model, expected, rtol=1e-4, atol=1e-6)


def test_fedsgd_and_one_step_of_fedavg_agree(federate):
    work = {"batch_size": None, "learning_rate": 0.2}
    a = federate(local={**work, "share": "gradient"}).model
    b = federate(local={**work, "share": "update"}).model
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_batchnorm_statistics_are_averaged_and_counts_stay_at_home(federate, task):
    model = batchnorm()
    done = federate(model=model, clients=4, rounds=2, server=ServerYogi())
    layout = done.federation.layout
    state = layout.views(done.model)
    assert "1.num_batches_tracked" not in state
    assert (state["1.running_var"] > 0).all()
    updates = federate(model=model, clients=4, rounds=1, watched=frozenset(range(4)))
    seen = updates.rounds[0].views["server_operator"].rounds[0].updates
    mean = torch.stack([u.tensors["1.running_mean"] for u in seen.values()]).mean(0)
    torch.testing.assert_close(layout.views(updates.model)["1.running_mean"], mean)
    layout.write(done.model, model)
    assert task.evaluate(model)["accuracy"] > 0.3


def test_an_empty_cohort_leaves_the_model_as_it_is(federate):
    done = federate(clients=3, participation=0.05, sampling="poisson", rounds=6)
    empty = [r for r in done.rounds if not r.invited]
    assert empty, "the seed draws an empty cohort"
    before = [done.federation.start().model, *done.models]
    for r in empty:
        assert torch.equal(before[r.round - 1], before[r.round])
        assert r.views["network"].rounds[-1].participants == ()


def test_an_empty_cohort_under_central_noise_is_noised(federate):
    done = federate(clients=3, participation=0.05, rounds=6, defense=central())
    empty = next(r for r in done.rounds if not r.invited)
    before = [done.federation.start().model, *done.models]
    step = before[empty.round] - before[empty.round - 1]
    assert float(step.std()) == pytest.approx(1 / 0.15, rel=0.1)


def test_a_private_round_without_a_finite_update_is_noised_and_counted(federate):
    """To stop there would tell that no update was finite, at no cost in epsilon."""
    level = ClientLevel(delta=1e-3, clip=1.0, noise_multiplier=1.0)
    private = Defense(aggregation=ClippedMean(), release=CentralGaussian(), privacy=level)
    done = federate(defense=private, local={"learning_rate": 1e30})
    assert [e["round"] for e in done.rounds[-1].state.ledger] == [1, 2]
    moved = (done.model - done.federation.start().model).double()
    assert float(moved.std()) == pytest.approx(2**0.5 / 6, rel=0.1), "two rounds' noise on a sum over six"


def test_drop_outs_are_recorded(federate):
    done = federate(clients=10, dropout=0.5, rounds=4)
    for r in done.rounds:
        assert r.invited == tuple(range(10))
        assert set(r.answered) < set(r.invited)
        assert r.views["network"].rounds[-1].participants == r.answered
    assert len({r.answered for r in done.rounds}) > 1


def test_all_may_drop_out(federate):
    done = federate(clients=2, dropout=0.9, rounds=5)
    gone = [r for r in done.rounds if not r.answered]
    assert gone
    before = [done.federation.start().model, *done.models]
    assert all(torch.equal(before[r.round], before[r.round - 1]) for r in gone)


def test_attackers_are_the_last_clients_and_a_share_is_a_share(federate, task):
    federation = federate(clients=6, rounds=1, poisoner=Backdoor(clients=2)).federation
    assert federation.attackers == {4, 5}
    assert federation.client_side().attackers == {4, 5}
    with pytest.raises(ConfigError) as caught:
        federate(clients=2, poisoner=Backdoor(clients=3))
    assert caught.value.field == "poisoning.clients"
    uneven = replace(task, partition=Quantity(sizes=(1, 2)))
    weights = federate(task=uneven, clients=3, participation=0.4, rounds=1).federation.client_side().weights
    # The expected cohort's weights sum to one over the share that is drawn, one of three.
    assert sum(weights) == pytest.approx(3)
    assert weights == sorted(weights)


@dataclass(frozen=True)
class Copycat(Poisoner):
    """Sends minus the sum of what it reads."""

    asks: ClassVar[frozenset[str]] = frozenset({"honest_updates"})

    def craft(self, update, seen, generator):
        return replace(update, vector=-sum(u.vector for u in seen.honest) if seen.honest else update.vector * 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_poisoner_that_reads_others_crafts_after_them(federate, workers):
    done = federate(workers, clients=4, rounds=2, weighting="equal", poisoner=Copycat(clients=1))
    # the last client's update cancels all others
    torch.testing.assert_close(done.model, done.federation.start().model, rtol=0, atol=1e-5)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(federate(clients=4).model, done.model, rtol=0, atol=1e-3)


@dataclass(frozen=True)
class Targeted:
    """Sends client 1 a model of zeros."""

    def craft(self, model, client):
        return torch.zeros_like(model) if client == 1 else model


@pytest.mark.parametrize("workers", [1, 2])
def test_a_crafted_model_reaches_its_client_alone(federate, workers):
    watched = frozenset({0, 1})
    honest = federate(clients=3, rounds=1, watched=watched)
    crafted = federate(workers, clients=3, rounds=1, watched=watched, distribution=Targeted())
    seen, expected = (d.rounds[0].views["server_operator"].rounds[0].updates for d in (crafted, honest))
    assert torch.equal(seen[0].vector, expected[0].vector)
    assert not torch.equal(seen[1].vector, expected[1].vector)


def test_divergence_stops_the_run(federate):
    with pytest.raises(Diverged):
        federate(local={"learning_rate": 1e30}, rounds=5)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_server_holds_few_updates_at_once(task, workers):
    """Rules that sum stream: 200 clients of one record each never have 200 updates in the server's memory."""
    model = make(LogisticRegression(), task.spec, 0)
    federation = Federation(FederationSettings(clients=200, rounds=1), task, model)
    most = 0

    @dataclass(frozen=True)
    class Counting:
        inner: Rule
        bounded = True

        def combine(self, updates, state, context):
            def counted():
                nonlocal most
                for n, update in enumerate(updates):
                    if n % 10 == 0:
                        most = max(most, sum(type(o) is Update for o in gc.get_objects()))
                    yield update

            return self.inner.combine(counted(), state, context)

    federation.defense = replace(federation.defense, aggregation=Counting(Mean()))
    gc.collect()
    already = sum(type(o) is Update for o in gc.get_objects())
    side = federation.client_side()
    engine = engines.start(side, workers, torch.device("cpu"))
    try:
        rounds = list(federation.run(federation.start(), side, engine))
    finally:
        engine.close()
    assert len(rounds[0].answered) == 200
    assert 0 < most - already <= 4 * engines.Pool.AHEAD * workers + 4


def test_views_hold_what_is_watched_and_kept(federate):
    done = federate(clients=4, rounds=4, watched=frozenset({1}), keep=frozenset({2}))
    assert set(done.rounds[0].views) == set(ADVERSARIES)
    assert [[v.round for v in r.views["server_operator"].rounds] for r in done.rounds] == [[1], [2], [2, 3], [2, 4]]
    operator = done.rounds[1].views["server_operator"].at(2)
    assert operator is not None
    assert set(operator.updates) == {1}
    assert operator.participants == (0, 1, 2, 3)
    assert torch.equal(operator.sent, done.models[0])
    assert torch.equal(operator.released, done.models[1])
    for outsider in ("participant", "model_recipient"):
        seen = done.rounds[1].views[outsider].at(2)
        assert (seen.updates, seen.aggregate, seen.participants) == ({}, None, None)
    network = done.rounds[1].views["network"].at(2)
    assert (network.sent, network.released, network.updates, network.aggregate) == (None, None, {}, None)
    assert set(network.sizes) == set(network.seconds) == {0, 1, 2, 3}
    assert set(network.sizes.values()) == {4 * done.federation.layout.size}


@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_a_view_holds_no_training_data(federate, task, mlp, adversary):
    sizes = []
    for records in (40, 1000):
        own = replace(task, records=records)
        done = federate(task=own, clients=4, rounds=2, watched=frozenset({0, 1}), keep=frozenset({1}))
        view = done.rounds[-1].views[adversary]
        sizes.append(len(pickle.dumps(view)))
        held = [o for o in _reachable(view) if isinstance(o, torch.Tensor) and o.numel() >= 40 * 64]
        assert all(o.dtype == torch.float32 and o.numel() <= done.federation.layout.size for o in held)
        assert not any(isinstance(o, Classification) for o in _reachable(view))
    assert abs(sizes[1] - sizes[0]) < 200, sizes


def _reachable(start):
    """All objects that can be reached from ``start``, modules, classes and functions' globals left out."""
    seen, todo = {}, [start]
    while todo:
        o = todo.pop()
        if id(o) in seen or isinstance(o, type | type(gc)) or type(o).__name__ == "function":
            continue
        seen[id(o)] = o
        todo.extend(gc.get_referents(o))
    return list(seen.values())


def test_the_published_loss_carries_no_task(federate):
    loss = federate(rounds=1).federation.public.loss
    assert getattr(loss, "__self__", None) is None
    assert getattr(loss, "__closure__", None) is None
    assert len(pickle.dumps(loss)) < 200


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"defense": central(), "sampling": "fixed", "participation": 0.5}, "federation.sampling"),
        ({"defense": central(), "weighting": "records"}, "federation.weighting"),
        ({"defense": central(delta=0.2)}, "defense.privacy.delta"),
        ({"defense": local(delta=0.005)}, "defense.privacy.delta"),
        ({"defense": local(), "model": batchnorm()}, "model"),
        ({"clients": 201}, "federation.clients"),
    ],
)
def test_contradictions_are_refused_before_training(federate, options, field):
    with pytest.raises(ConfigError) as caught:
        federate(**options)
    assert caught.value.field == field


def test_a_loss_that_mixes_records_is_refused_under_dp_sgd(federate, task):
    @dataclass(frozen=True)
    class Contrastive(Classification):
        separable: ClassVar[bool] = False

    own = Contrastive(**{f: getattr(task, f) for f in ("source", "partition", "trigger", "records")})
    federate(task=own, rounds=1)
    with pytest.raises(ConfigError, match="Contrastive"):
        federate(task=own, rounds=1, defense=local())


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"clients": 0}, "clients"),
        ({"rounds": 0}, "rounds"),
        ({"participation": 0.0}, "participation"),
        ({"participation": 1.1}, "participation"),
        ({"dropout": 1.0}, "dropout"),
        ({"evaluate_every": 0}, "evaluate_every"),
        ({"workers": 0}, "workers"),
    ],
)
def test_settings_out_of_range(values, field):
    with pytest.raises(ConfigError) as caught:
        FederationSettings(**values)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"batch_size": 0},
        {"epochs": 0},
        {"steps": 0},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"proximal": -1.0},
    ],
)
def test_local_work_out_of_range(values):
    with pytest.raises(ConfigError) as caught:
        LocalWork(**values)
    assert caught.value.field == next(iter(values))


def test_workers_share_the_cores_among_parallel_jobs(task, mlp):
    cores = engines.cores()
    assert Federation(FederationSettings(), task, mlp).workers() == cores
    assert Federation(FederationSettings(), task, mlp).workers(parallel_jobs=10 * cores) == 1
    assert Federation(FederationSettings(workers=3), task, mlp).workers(parallel_jobs=2) == 3


def test_momentum_carries_on_over_rounds(federate):
    plain, heavy = federate(rounds=1), federate(rounds=1, server=ServerSGD(momentum=0.9))
    assert torch.equal(plain.model, heavy.model), "the first step has no momentum yet"
    assert not torch.equal(federate(rounds=2).model, federate(rounds=2, server=ServerSGD(momentum=0.9)).model)


def test_models_of_other_shapes(federate, task):
    assert torch.isfinite(federate(model=make(MLP(hidden=(5, 4)), task.spec, 0), rounds=1).model).all()
