"""Golden numbers with tolerances: an attack that got worse fails here."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from privbench.attacks.leakage.attack import AttackFailed, choose
from privbench.attacks.leakage.dlg import DLG
from privbench.attacks.leakage.inverting_gradients import InvertingGradients
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.update import Layout
from privbench.benchmarks.federation.view import Known
from privbench.benchmarks.measures.images import baselines, psnr, to_raw
from privbench.benchmarks.tasks.task import Split


def quality(s, found) -> tuple[float, float]:
    """PSNR of one reconstructed digit, and that of its own 4x4 mosaic."""
    original = to_raw(s.truth.x, s.public.mean, s.public.std)
    raw = to_raw(found.x, s.public.mean, s.public.std)
    return float(psnr(raw, original).mean()), float(psnr(baselines(original)["mosaic"], original).mean())


def relu_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    conv = (nn.Conv2d(1, 8, 5, 2, 2), nn.ReLU(), nn.Conv2d(8, 16, 5, 2, 2), nn.ReLU())
    return nn.Sequential(*conv, nn.Flatten(), nn.Linear(16 * 49, 32), nn.ReLU(), nn.Linear(32, 10))


def attacked(s, attack, generator, view=None):
    view = s.view() if view is None else view
    return attack.reconstruct(view, s.observation(view), generator)


@pytest.mark.golden
def test_inverting_gradients_on_a_digit(scene, generator):
    s = scene(lenet_model(1))
    found = attacked(s, InvertingGradients(iterations=300, total_variation=0.001), generator)
    reached, mosaic = quality(s, found)
    assert reached > 20
    assert reached > mosaic + 6
    assert found.y.tolist() == s.truth.y.tolist()


@pytest.mark.golden
def test_inverting_gradients_on_relu(scene, generator):
    s = scene(relu_net())
    found = attacked(s, InvertingGradients(iterations=400), generator)
    assert quality(s, found)[0] > 25
    low, high = -s.public.mean / s.public.std, (1 - s.public.mean) / s.public.std
    assert ((found.x >= low) & (found.x <= high)).all()


@pytest.mark.golden
@pytest.mark.parametrize("labels", ["inferred", "joint"])
def test_dlg_on_a_digit(scene, generator, labels):
    s = scene(lenet_model(0))
    found = attacked(s, DLG(iterations=200, labels=labels), generator)
    assert quality(s, found)[0] > 25
    assert found.y.tolist() == s.truth.y.tolist()


def test_update_of_one_step_is_attacked_like_the_gradient(scene):
    s = scene(relu_net(), 2, learning_rate=0.05)
    sent = s.update(-0.05 * s.gradient, "update")
    attack = InvertingGradients(iterations=10)
    a = attacked(s, attack, torch.Generator().manual_seed(3))
    b = attacked(s, attack, torch.Generator().manual_seed(3), s.view(updates={0: sent}))
    torch.testing.assert_close(a.x, b.x, rtol=1e-3, atol=1e-3)
    assert a.objective == pytest.approx(b.objective, rel=1e-3)


def test_same_generator_same_numbers(scene):
    s = scene(relu_net())
    attack = InvertingGradients(iterations=5)
    a, b = (attacked(s, attack, torch.Generator().manual_seed(1)) for _ in range(2))
    c = attacked(s, attack, torch.Generator().manual_seed(2))
    assert torch.equal(a.x, b.x)
    assert not torch.equal(a.x, c.x)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("attack", [InvertingGradients(iterations=2), DLG(iterations=2)])
def test_unusable_gradients_are_refused(scene, generator, attack, value):
    s = scene()
    with pytest.raises(AttackFailed, match="zero" if value == 0 else "NaN or infinite"):
        attacked(s, attack, generator, s.view(updates={0: s.update(torch.full_like(s.sent, value))}))


def test_unusable_sizes_are_refused(scene, generator):
    s = scene()
    seen = s.observation()
    attack = InvertingGradients(iterations=2)
    with pytest.raises(AttackFailed, match="gradient has shape"):
        attack.reconstruct(s.view(), replace(seen, gradient=seen.gradient[1:]), generator)
    with pytest.raises(AttackFailed, match="model vector has shape"):
        attack.reconstruct(s.view(), replace(seen, model=seen.model[1:]), generator)
    with pytest.raises(AttackFailed, match="0 records"):
        attack.reconstruct(s.view(), replace(seen, records=0), generator)


def test_diverged_restarts_are_left_out():
    candidates = torch.zeros(3, 1, 2)
    candidates[0, 0, 0] = float("nan")
    labels = torch.tensor([[0], [1], [2]])
    found = choose(candidates, labels, [0.1, 0.5, 0.3])
    assert (found.restart, found.y.tolist(), found.objective) == (2, [2], pytest.approx(0.3))
    with pytest.raises(AttackFailed, match="none of 3 restarts"):
        choose(candidates, labels, [0.1, float("nan"), float("inf")])


def test_tables_have_no_pixels(scene, generator, digits):
    """Heartbeats and patients: no box, no total variation, and a value far from any pixel is found."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 10))
    x = torch.tensor([[4.0, -3.0, 0.5, 1.0, -0.2, 2.0]])
    s = scene(model, Split(x, torch.tensor([3])), mean=torch.zeros(6), std=torch.ones(6))
    found = attacked(s, DLG(iterations=200, restarts=4), generator)
    assert float((found.x - x).square().mean()) < 0.01


@pytest.mark.golden
def test_a_published_clip_takes_the_length_away(scene, generator):
    s = scene(lenet_model(0), known=lambda source, client: Known(clip=0.01))
    clipped = s.update(0.01 * s.gradient / s.gradient.norm())
    found = attacked(s, DLG(iterations=200), generator, s.view(updates={0: clipped}))
    assert quality(s, found)[0] > 25


def test_the_prior_grows_with_the_noise(scene):
    s = scene(lenet_model(0))
    seen = s.observation()
    attack = InvertingGradients()
    noisy = replace(seen, known=Known(clip=1.0, step_noise_std=10.0))
    assert attack.weight(s.public, seen) == pytest.approx(0.01)
    assert attack.weight(s.public, noisy) == pytest.approx(0.19)
    assert DLG().weight(s.public, seen) == 0
    assert InvertingGradients(total_variation=0.2).weight(s.public, noisy) == 0.2


@pytest.mark.parametrize(
    ("field", "value"), [("iterations", 0), ("restarts", 0), ("learning_rate", 0.0), ("total_variation", -1.0)]
)
@pytest.mark.parametrize("kind", [InvertingGradients, DLG])
def test_bad_settings(kind, field, value):
    with pytest.raises(ConfigError, match=field):
        kind(**{field: value})


def lenet_model(seed: int) -> nn.Module:
    """Zhu et al.'s LeNet with their uniform initialisation."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 12, 5, 2, 2), nn.Conv2d(12, 12, 5, 2, 2), nn.Conv2d(12, 12, 5, 1, 2)]
    model = nn.Sequential(*[m for c in layers for m in (c, nn.Sigmoid())], nn.Flatten(), nn.Linear(588, 10))
    Layout.of(model).write(torch.rand(Layout.of(model).size) - 0.5, model)
    return model
