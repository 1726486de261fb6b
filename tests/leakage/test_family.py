"""What attacks by optimisation can be made of: unrolled local steps, statistics of BatchNorm, masks, starts."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from privbench.attacks.leakage.attack import AttackFailed
from privbench.attacks.leakage.batchnorm import statistics
from privbench.attacks.leakage.grad_inversion import GradInversion
from privbench.attacks.leakage.gradient import ClientGradient
from privbench.attacks.leakage.inverting_gradients import InvertingGradients
from privbench.attacks.leakage.objectives import Cosine, Weighted
from privbench.attacks.leakage.observe import observe
from privbench.attacks.leakage.priors import BatchNormStatistics
from privbench.attacks.leakage.spear import Spear
from privbench.attacks.leakage.unrolled import ClientUpdate, visits
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.settings import LocalWork
from privbench.benchmarks.federation.trainer import Trainer
from privbench.benchmarks.federation.view import Known
from privbench.benchmarks.measures.images import psnr, to_raw
from privbench.defenses.local import Local


def tanh_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 5, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 196, 10))


def batchnorm_net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 8, 5, 2, 2), nn.BatchNorm2d(8), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 196, 10))
    return nn.Sequential(*layers)


WORK = LocalWork(learning_rate=0.2, batch_size=2, epochs=2, momentum=0.5, weight_decay=0.01, proximal=0.1)


@pytest.mark.parametrize("work", [WORK, LocalWork(learning_rate=0.1, batch_size=3, steps=4)])
@pytest.mark.parametrize("functional", [False, True])
def test_unrolled_steps_are_those_of_local_training(scene, work, functional, monkeypatch):
    s = scene(tanh_net(), 4)
    trainer = Trainer(s.public.model, s.public.layout, s.public.loss, Local(), torch.device("cpu"))
    monkeypatch.setattr(Local, "batches", lambda self, records, work, generator: visits(records, work))
    sent = trainer.train(s.sent, s.truth, work, 0, None, 0, 1).vector
    followed = ClientUpdate(ClientGradient(s.public, s.sent), work)
    made = (followed.functional if functional else followed)(s.truth.x, s.truth.y)
    expected = -sent[: len(made)] / (work.learning_rate * work.local_steps(4))
    torch.testing.assert_close(made.detach(), expected, rtol=1e-3, atol=1e-5)


def observed(s, work: LocalWork):
    """The view of an update of several steps, in the order that an attack assumes."""
    followed = ClientUpdate(ClientGradient(s.public, s.sent), work)
    steps = work.local_steps(len(s.truth))
    vector = -work.learning_rate * steps * followed(s.truth.x, s.truth.y).detach()
    sent = s.update(torch.cat([vector, torch.zeros(s.public.layout.size - len(vector))]), "update")
    view = s.view(participants=(0,), updates={0: sent})
    public = replace(view.public, kind="update", learning_rate=work.learning_rate, local_steps=work.local_steps)
    return replace(view, public=replace(public, work=work))


@pytest.mark.golden
def test_unrolling_sees_more_in_an_update_of_several_steps(scene):
    s = scene(tanh_net(), 2)
    view = observed(s, LocalWork(learning_rate=0.1, batch_size=1, epochs=1))
    seen = observe(view, 1, 0)
    assert seen is not None
    assert (seen.steps, seen.exact) == (2, False)
    reached = {}
    for unroll in (True, False):
        attack = InvertingGradients(150, 1, 0.1, 0.001, "known", unroll=unroll, compile="never")
        found = attack.reconstruct(view, replace(seen, labels=s.truth.y), torch.Generator().manual_seed(0))
        original = to_raw(s.truth.x, s.public.mean, s.public.std)
        reached[unroll] = float(psnr(to_raw(found.x, s.public.mean, s.public.std), original).mean()), found.objective
    assert reached[True][1] < reached[False][1] / 100, "the averaged gradient can't be matched"
    assert reached[True][0] > reached[False][0] + 10
    auto = InvertingGradients(iterations=3, compile="never")
    assert isinstance(auto._followed(view.public, seen, ClientGradient(view.public, seen.model)), ClientUpdate)
    noisy = replace(seen, known=Known(clip=1.0, step_noise_std=0.1))
    assert isinstance(auto._followed(view.public, noisy, ClientGradient(view.public, seen.model)), ClientGradient)


def test_batchnorm_statistics_of_an_update_are_those_of_its_batch(scene):
    s = scene(batchnorm_net(), 4)
    layout, model = s.public.layout, s.public.model
    layout.write(s.sent, model)
    model.train()(s.truth.x)
    change = layout.read(model)[layout.trainable :] - s.sent[layout.trainable :]
    vector = torch.cat([s.gradient[: layout.trainable], change])
    seen = observe(s.view(participants=(0,), updates={0: s.update(vector)}), 1, 0)
    assert seen is not None
    layout.write(s.sent, model)
    first = model[0](s.truth.x).detach()
    mean, variance = statistics(s.public, seen, "update")["1"]
    torch.testing.assert_close(mean, first.mean((0, 2, 3)), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(variance, first.var((0, 2, 3)), rtol=1e-3, atol=1e-5)
    running, _ = statistics(s.public, seen, "running")["1"]
    assert not torch.allclose(running, mean, atol=1e-2)
    prior = BatchNormStatistics(ClientGradient(s.public, s.sent), {"1": (mean, variance)})
    assert float(prior(s.truth.x).detach()) < 1e-4 < float(prior(torch.randn_like(s.truth.x)).detach())


def test_a_small_batch_has_the_statistics_that_its_update_tells(scene):
    """Four records and no pixels to average over: the biased variance would be a quarter less."""
    torch.manual_seed(0)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
    s = scene(flat.train(), 4)
    layout, model = s.public.layout, s.public.model
    layout.write(s.sent, model)
    model(s.truth.x)
    change = layout.read(model)[layout.trainable :] - s.sent[layout.trainable :]
    vector = torch.cat([s.gradient[: layout.trainable], change])
    seen = observe(s.view(participants=(0,), updates={0: s.update(vector)}), 1, 0)
    assert seen is not None
    prior = BatchNormStatistics(ClientGradient(s.public, s.sent), statistics(s.public, seen, "update"))
    assert float(prior(s.truth.x).detach()) < 1e-3


def test_behind_dead_units_any_records_fit_which_is_a_failure(scene, generator):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 10))
    with torch.no_grad():
        model.get_parameter("1.weight").zero_()
        model.get_parameter("1.bias").fill_(-1.0)
    s = scene(model, 3)
    with pytest.raises(AttackFailed, match="says nothing of the records"):
        InvertingGradients(iterations=2).reconstruct(s.view(), s.observation(), generator)
    with pytest.raises(AttackFailed, match="no unit is active"):
        Spear().reconstruct(s.view(), s.observation(), generator)


@pytest.mark.golden
def test_grad_inversion_on_a_model_with_batchnorm(scene, generator):
    s = scene(batchnorm_net().eval(), 1)
    attack = GradInversion(iterations=150, restarts=2, compile="never", bn=1e-3)
    assert attack.needs == {"batch_size", "bn_statistics"}
    found = attack.reconstruct(s.view(), s.observation(), generator)
    original = to_raw(s.truth.x, s.public.mean, s.public.std)
    assert float(psnr(to_raw(found.x, s.public.mean, s.public.std), original).mean()) > 18
    assert len(found.objectives) == 2


@pytest.mark.parametrize("source", ["running", "update"])
def test_statistics_that_are_not_there_are_named(scene, generator, source):
    s = scene(tanh_net())
    with pytest.raises(AttackFailed, match="no BatchNorm layer"):
        GradInversion(iterations=2, bn_statistics=source).reconstruct(s.view(), s.observation(), generator)


def test_statistics_of_an_update_need_one_that_is_seen(scene, generator):
    s = scene(batchnorm_net(), 2)
    seen = replace(s.observation(), buffers=None)
    with pytest.raises(AttackFailed, match=r"bn_statistics=update: no change"):
        GradInversion(iterations=2, bn_statistics="update").reconstruct(s.view(), seen, generator)


@pytest.mark.golden
def test_pruned_entries_say_nothing(scene, generator):
    s = scene(tanh_net())
    seen = s.observation()
    cut = seen.gradient.abs() < seen.gradient.abs().quantile(0.7)
    pruned = replace(seen, gradient=torch.where(cut, 0.0, seen.gradient), known=Known(pruned=True))
    attack = InvertingGradients(iterations=150, total_variation=0.001, compile="never")
    told = attack.reconstruct(s.view(), pruned, generator)
    untold = attack.reconstruct(s.view(), replace(pruned, known=Known()), torch.Generator().manual_seed(0))
    assert told.objective < untold.objective / 2


def test_layer_weights(scene, generator):
    s = scene(tanh_net())
    sizes = [p.numel() for p in s.public.model.parameters()]
    attack = InvertingGradients(iterations=3, layer_weights=(1.0, 0.0, 2.0, 1.0))
    found = attack.reconstruct(s.view(), s.observation(), generator)
    weighted = Weighted(Cosine(), torch.repeat_interleave(torch.tensor(attack.layer_weights), torch.tensor(sizes)))
    gradient = ClientGradient(s.public, s.sent)(found.x, found.y).detach()
    assert found.objective == pytest.approx(float(weighted(gradient, s.observation().gradient)), rel=1e-4)
    assert found.objective != pytest.approx(float(Cosine()(gradient, s.observation().gradient)), rel=1e-3)
    with pytest.raises(AttackFailed, match="layer_weights has 2 entries for 4 tensors"):
        InvertingGradients(iterations=3, layer_weights=(1.0, 2.0)).reconstruct(s.view(), s.observation(), generator)
    for wrong in ((0.0, 0.0), (-1.0, 1.0)):
        with pytest.raises(ConfigError, match="layer_weights"):
            InvertingGradients(layer_weights=wrong)


@pytest.mark.parametrize("init", ["normal", "uniform", "zeros"])
def test_starts(scene, generator, init):
    s = scene(tanh_net())
    found = InvertingGradients(iterations=100, init=init, compile="never").reconstruct(
        s.view(), s.observation(), generator
    )
    original = to_raw(s.truth.x, s.public.mean, s.public.std)
    # A black image has 10.6 dB, the training mean 11.3, a 4x4 mosaic 12.6.
    assert float(psnr(to_raw(found.x, s.public.mean, s.public.std), original).mean()) > 14


@pytest.mark.slow
def test_compiled_descents_end_where_the_others_do(scene):
    s = scene(tanh_net())
    seen = [s.observation()] * 4
    found = {}
    for compile in ("always", "never"):
        attack = InvertingGradients(iterations=40, compile=compile)
        generators = [torch.Generator().manual_seed(k) for k in range(4)]
        found[compile] = attack.reconstruct_many(s.view(), seen, generators)
    for compiled, eager in zip(found["always"], found["never"], strict=True):
        assert not isinstance(compiled, AttackFailed)
        assert not isinstance(eager, AttackFailed)
        assert "compiled" in compiled.engine
        assert compiled.objective == pytest.approx(eager.objective, rel=0.1)
