import copy

import pytest
import torch
from torch import nn

from privbench.benchmarks.federation.processes import Pool, Serial
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.settings import LocalWork
from privbench.benchmarks.federation.trainer import Trainer
from privbench.benchmarks.federation.update import Layout
from privbench.benchmarks.tasks.classification import Classification
from privbench.benchmarks.tasks.models.architecture import make
from privbench.benchmarks.tasks.models.small_cnn import SmallCNN
from privbench.defenses.local import Local

CPU = torch.device("cpu")


def mlp() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))


def conv() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(24, 10)
    )


def normalised() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def dropping() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Dropout(0.5), nn.Linear(12, 10))


def trainer(model: nn.Module) -> Trainer:
    return Trainer(model, Layout.of(model), Classification.loss, Local(), CPU)


def train(model: nn.Module, records, work: LocalWork, client: int = 3, round: int = 2):
    layout = Layout.of(model)
    return trainer(model).train(layout.read(model), records, work, client, None, 5, round)


def reference(model: nn.Module, records, work: LocalWork, client: int = 3, round: int = 2) -> nn.Module:
    """The same training as a textbook would write it: nn.Module and torch.optim.SGD on the same batches."""
    model = copy.deepcopy(model).train()
    anchor = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(
        model.parameters(), work.learning_rate, momentum=work.momentum, weight_decay=work.weight_decay
    )
    batches = stream(5, "batches", round, client)
    steps, batch = 0, work.batch(len(records))
    while steps < work.local_steps(len(records)):
        order = torch.randperm(len(records), generator=batches)
        for start in range(0, len(records), batch):
            if steps == work.local_steps(len(records)):
                break
            index = order[start : start + batch]
            optimizer.zero_grad()
            loss = Classification.loss(model, (records.x[index], records.y[index]))
            for p, a in zip(model.parameters(), anchor, strict=True):
                loss = loss + work.proximal / 2 * (p - a).square().sum()
            loss.backward()
            optimizer.step()
            steps += 1
    return model


@pytest.fixture(scope="module")
def records(task):
    return task.data.train.take(torch.arange(37))


@pytest.mark.parametrize("model", [mlp, conv, normalised])
@pytest.mark.parametrize(
    "work",
    [
        LocalWork(),
        LocalWork(momentum=0.9, learning_rate=0.05),
        LocalWork(weight_decay=0.01, epochs=3),
        LocalWork(proximal=0.5, epochs=2),
        LocalWork(momentum=0.8, weight_decay=0.01, proximal=0.3, steps=7, learning_rate=0.05),
        LocalWork(batch_size=None, epochs=2),
        LocalWork(batch_size=64, steps=3),
    ],
    ids=["plain", "momentum", "decay", "proximal", "all", "full", "large"],
)
def test_training_is_sgd(model, work, records):
    net = model()
    layout = Layout.of(net)
    update = train(net, records, work)
    expected = layout.read(reference(net, records, work)) - layout.read(net)
    torch.testing.assert_close(update.vector, expected, rtol=2e-3, atol=2e-5)
    assert update.vector.abs().max() > 1e-3
    assert (update.kind, update.records) == ("update", 37)


def test_a_second_client_starts_from_what_it_received(records):
    net = normalised()
    layout, one = Layout.of(net), trainer(net)
    sent = layout.read(net)
    args = (LocalWork(momentum=0.9), 3, None, 5, 2)
    first = one.train(sent, records, *args)
    one.train(torch.randn(layout.size).abs(), records, LocalWork(), 4, None, 5, 2)
    again = one.train(sent, records, *args)
    assert torch.equal(first.vector, again.vector)
    assert torch.equal(sent, layout.read(net)), "what was received stays as it is"


@pytest.mark.parametrize("model", [mlp, conv])
@pytest.mark.parametrize("batch", [None, 10])
def test_a_shared_gradient_is_the_mean_gradient_at_the_received_model(model, batch, records):
    net = model()
    work = LocalWork(batch_size=batch, share="gradient", epochs=2)
    update = train(net, records, work)
    batches = stream(5, "batches", 2, 3)
    total = torch.zeros(Layout.of(net).size)
    for _ in range(2):
        for index in torch.randperm(37, generator=batches).split(batch or 37):
            loss = Classification.loss(net, (records.x[index], records.y[index]))
            total += torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, [*net.parameters()])])
    torch.testing.assert_close(update.vector, total / work.local_steps(37), rtol=1e-3, atol=1e-6)
    assert update.kind == "gradient"


def test_buffers_of_a_shared_gradient_are_differences(records):
    net = normalised()
    layout = Layout.of(net)
    update = train(net, records, LocalWork(share="gradient"))
    moved = layout.views(layout.read(net))["1.running_var"] + update.tensors["1.running_var"]
    assert (moved > 0).all()
    assert not torch.equal(moved, torch.ones(4))


def _dropout_client(context, client):
    net, records = context
    torch.manual_seed(client * 17)  # whatever happened in this process before
    return train(net, records, LocalWork(), client).vector


def test_dropout_layers_draw_from_the_clients_own_stream(records):
    context = (dropping(), records)
    serial = list(Serial(context).map(_dropout_client, range(5)))
    backwards = list(Serial(context).map(_dropout_client, reversed(range(5))))[::-1]
    pool = Pool(context, 2)
    pooled = list(pool.map(_dropout_client, range(5)))
    pool.close()
    for a, b, c in zip(serial, backwards, pooled, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_dropout_differs_between_clients_and_rounds(records):
    net = dropping()
    work = LocalWork(batch_size=None)  # the batch is the same: what differs is dropout
    found = [train(net, records, work, client, round).vector for client, round in ((1, 1), (2, 1), (1, 2))]
    assert not torch.allclose(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


@pytest.mark.parametrize("model", [mlp, dropping])
def test_the_global_generator_is_left_as_it_was(model, records):
    net = model()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    train(net, records, LocalWork(epochs=2))
    assert torch.equal(before, torch.get_rng_state())


def test_the_model_given_is_not_trained(task, records):
    net = make(SmallCNN(width=2, hidden=4), task.spec, 0)
    before = Layout.of(net).read(net)
    train(net, records, LocalWork())
    assert torch.equal(before, Layout.of(net).read(net))


@pytest.mark.parametrize(
    ("work", "records_", "steps"),
    [
        (LocalWork(), 25, 3),
        (LocalWork(epochs=2), 25, 6),
        (LocalWork(steps=5), 25, 5),
        (LocalWork(batch_size=None), 25, 1),
        (LocalWork(batch_size=100), 3, 1),
        (LocalWork(), 10, 1),
        (LocalWork(steps=7), 1, 7),
    ],
)
def test_local_steps_are_as_many_as_batches(work, records_, steps):
    batches = list(Local().batches(records_, work, torch.Generator().manual_seed(0)))
    assert work.local_steps(records_) == len(batches) == steps
    assert all(1 <= len(b) <= work.batch(records_) for b in batches)


def test_an_epoch_covers_each_record_once():
    batches = list(Local().batches(25, LocalWork(epochs=2), torch.Generator().manual_seed(0)))
    assert sorted(torch.cat(batches[:3]).tolist()) == list(range(25))
    assert sorted(torch.cat(batches[3:]).tolist()) == list(range(25))
    assert batches[0].tolist() != batches[3].tolist()
