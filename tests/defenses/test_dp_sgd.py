import warnings

import pytest
import torch
from torch import nn

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.settings import LocalWork
from privbench.benchmarks.federation.trainer import Trainer
from privbench.benchmarks.federation.update import Layout
from privbench.benchmarks.tasks.classification import Classification
from privbench.benchmarks.tasks.models.architecture import make
from privbench.benchmarks.tasks.models.resnet import ResNet18
from privbench.benchmarks.tasks.task import Split
from privbench.defenses.accounting import Facts, RecordLevel
from privbench.defenses.local import DPSGD, Local
from privbench.defenses.local.per_sample import Units
from privbench.defenses.noise import Source

CPU = torch.device("cpu")
CLIP = 0.5


def plan(records: int, work: LocalWork, sigma: float = 0.0, source: Source = "seeded"):
    guarantee = RecordLevel(delta=1e-5, clip=CLIP, noise_multiplier=sigma, noise_source=source)
    n = (records,)
    return guarantee.bind(Facts(1, 1, 1.0, "fixed", n, (work.batch(records),), (work.local_steps(records),)))


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))


def conv() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)]
    return nn.Sequential(*layers)


def step(
    model: nn.Module, x, y, sigma: float = 0.0, batch: int = 8, source: Source = "seeded", seed: int = 0
) -> torch.Tensor:
    """The gradient that one step leaves for these records, as a named flat vector."""
    layout = Layout.of(model)
    trainer = Trainer(model, layout, Classification.loss, DPSGD(), CPU)
    layout.write(layout.read(model), trainer.model)
    bound = plan(64, LocalWork(batch_size=batch), sigma, source)
    trainer.local.gradient(trainer, [Units(x, y)], 0, bound, torch.Generator().manual_seed(seed))
    return torch.cat([p.grad.reshape(-1) for p in trainer.model.parameters() if p.grad is not None])


def clipped_sum(model: nn.Module, x, y) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(y)):
        loss = Classification.loss(model, (x[i : i + 1], y[i : i + 1]))
        g = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, [*model.parameters()])]).double()
        total = total + g * min(1.0, CLIP / float(g.norm()))
    return total


@pytest.fixture(scope="module")
def records(task):
    return task.data.train.take(torch.arange(40))


@pytest.mark.parametrize("model", [mlp, conv])
def test_a_step_is_the_clipped_sum_over_the_expected_batch(model, records):
    net = model()
    x, y = records.x[:11] * 3, records.y[:11]
    found = step(net, x, y, batch=8)
    torch.testing.assert_close(found.double(), clipped_sum(net, x, y) / 8, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("model", [mlp, conv])
def test_one_record_moves_the_sum_by_at_most_the_clip(model, records):
    net = model()
    x, y = records.x[:12].clone(), records.y[:12]
    x[11] *= 1e4  # its gradient is far above the clip
    with_it, without = step(net, x, y, batch=1), step(net, x[:11], y[:11], batch=1)
    influence = float((with_it - without).norm())
    assert 0.9 * CLIP < influence <= CLIP * 1.0001
    y = y.clone()
    y[11] = (y[11] + 1) % 10
    assert float((step(net, x, y, batch=1) - without).norm()) <= CLIP * 1.0001


def test_small_gradients_are_not_scaled_up(records):
    net = mlp()
    for p in net.parameters():
        nn.init.zeros_(p)  # gradients reach the last bias alone
    x, y = torch.zeros(1, 1, 8, 8), records.y[:1]
    found = step(net, x, y, batch=1)
    plain = torch.autograd.grad(Classification.loss(net, (x, y)), [*net.parameters()])
    expected = torch.cat([g.reshape(-1) for g in plain])
    scale = min(1.0, CLIP / float(expected.norm()))
    torch.testing.assert_close(found, expected * scale, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("model", [mlp, conv])
def test_a_record_that_is_not_finite_contributes_zero(model, records, bad):
    net = model()
    x, y = records.x[:6].clone(), records.y[:6]
    x[2, 0, 3, 3] = bad
    rest = [0, 1, 3, 4, 5]
    found = step(net, x, y)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, step(net, x[rest], y[rest]), rtol=1e-4, atol=1e-6)


def test_an_empty_batch_adds_noise(records):
    empty = records.take(torch.zeros(0, dtype=torch.int64))
    found = step(mlp(), empty.x, empty.y, sigma=2.0, batch=8)
    expected = 2.0 * CLIP / 8
    assert float(found.std()) == pytest.approx(expected, rel=0.15)
    assert not step(mlp(), empty.x, empty.y, sigma=0.0).any()


def test_noise_is_sigma_c_over_the_expected_batch(records):
    net = mlp()
    x, y = records.x[:5], records.y[:5]
    clean = step(net, x, y, sigma=0.0)
    noise = torch.cat([step(net, x, y, sigma=3.0, seed=s) - clean for s in range(20)])
    assert float(noise.std()) == pytest.approx(3.0 * CLIP / 8, rel=0.03)
    assert abs(float(noise.mean())) < 5 * 3.0 * CLIP / 8 / len(noise) ** 0.5


def test_noise_sources(records):
    net = mlp()
    x, y = records.x[:5], records.y[:5]
    assert torch.equal(step(net, x, y, sigma=1.0, seed=1), step(net, x, y, sigma=1.0, seed=1))
    system = [step(net, x, y, sigma=1.0, source="system", seed=1) for _ in range(2)]
    assert not torch.equal(*system)


def test_batches_are_poisson():
    work = LocalWork(batch_size=5, steps=2000)
    batches = list(DPSGD().batches(20, work, torch.Generator().manual_seed(0)))
    sizes = torch.tensor([float(len(b)) for b in batches])
    assert len(batches) == 2000
    assert 0 in sizes, "an empty batch is a step"
    assert float(sizes.mean()) == pytest.approx(5, abs=0.25)
    assert float(sizes.var()) == pytest.approx(20 * 0.25 * 0.75, rel=0.15)


@pytest.mark.parametrize("model", [mlp, conv])
def test_without_noise_and_with_a_wide_clip_it_is_sgd_on_its_batches(model, records):
    net, work = model(), LocalWork(batch_size=8, learning_rate=0.1)
    layout = Layout.of(net)
    wide = RecordLevel(delta=1e-5, clip=1e6, noise_multiplier=0.0)
    facts = Facts(1, 1, 1.0, "fixed", (40,), (8,), (5,))
    trainer = Trainer(net, layout, Classification.loss, DPSGD(), CPU)
    update = trainer.train(layout.read(net), records, work, 0, wide.bind(facts), 0, 1)
    before = layout.read(net)
    for index in DPSGD().batches(40, work, stream(0, "batches", 1, 0)):
        loss = Classification.loss(net, (records.x[index], records.y[index])) * len(index) / 8
        grads = torch.autograd.grad(loss, [*net.parameters()])
        with torch.no_grad():
            for p, g in zip(net.parameters(), grads, strict=True):
                p -= 0.1 * g
    torch.testing.assert_close(update.vector, layout.read(net) - before, rtol=1e-3, atol=1e-5)


def test_training_twice_gives_the_same_and_no_warning(records):
    net, work = conv(), LocalWork(batch_size=8)
    layout, bound = Layout.of(net), plan(40, work, 1.0)
    trainer = Trainer(net, layout, Classification.loss, DPSGD(), CPU)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, two = (trainer.train(layout.read(net), records, work, 0, bound, 0, 1).vector for _ in range(2))
    assert torch.equal(one, two)


def test_a_client_of_one_record_trains():
    net, work = mlp(), LocalWork(batch_size=8, steps=6)
    layout = Layout.of(net)
    trainer = Trainer(net, layout, Classification.loss, DPSGD(), CPU)
    one = Split(torch.randn(1, 1, 8, 8), torch.tensor([3]))
    assert torch.isfinite(trainer.train(layout.read(net), one, work, 0, plan(1, work, 1.0), 0, 1).vector).all()


def test_batch_normalisation_is_refused(task):
    with pytest.raises(ConfigError, match="BatchNorm") as caught:
        DPSGD().check(make(ResNet18(norm="batch"), task.spec, 0))
    assert caught.value.field == "model"
    DPSGD().check(conv())
    Local().check(nn.BatchNorm2d(2))
