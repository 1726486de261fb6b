"""The scattering transform: kymatio's numbers, and what the theory says of it."""

import json

import pytest
import torch
from torch.nn import functional as F

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.augmentation import Augmentation
from privbench.benchmarks.progress import Progress
from privbench.benchmarks.run import run
from privbench.benchmarks.sweep import compose
from privbench.benchmarks.tasks import Classification
from privbench.benchmarks.tasks.features import Scattering
from privbench.benchmarks.tasks.features.morlet import bank
from privbench.benchmarks.tasks.models import ScatterCNN, ScatterLinear, make
from privbench.benchmarks.tasks.sources import Digits, UCIHeart
from privbench.benchmarks.tasks.task import Spec

DIGITS = Classification(Digits(), trigger=None, features=Scattering())

KYMATIO = {
    28: {
        0: (0.4598526060581207, 0.704872727394104),
        1: (0.010085595771670341, 0.007853343151509762),
        5: (0.037877582013607025, 0.03680555522441864),
        9: (0.028447911143302917, 0.016564659774303436),
        14: (0.030440546572208405, 0.010746171697974205),
        17: (0.0015153416898101568, 0.001231545233167708),
        30: (0.004665180575102568, 0.0020998138934373856),
        62: (0.0010574329644441605, 0.0008161538280546665),
        80: (0.0020375214517116547, 0.003162151901051402),
    },
    32: {0: (0.4598526656627655, 0.7041970491409302), 30: (0.0046659354120492935, 0.0024139308370649815)},
}
"""Coefficients of ``picture(edge)`` by path, at (3, 2) and (0, 0): ``Scattering2D(J=2, shape)`` of kymatio 0.3.0."""


def picture(edge: int) -> torch.Tensor:
    r = torch.arange(edge, dtype=torch.float64)
    waves = torch.sin(0.9 * r)[:, None] + torch.cos(0.5 * r) * torch.sin(0.3 * r)[:, None]
    return (0.5 + 0.25 * waves).float()[None, None]


@pytest.fixture(scope="module")
def raw() -> torch.Tensor:
    """Digits in [0, 1], enlarged to ``(20, 1, 28, 28)``."""
    data = Digits().load(None)
    small = data.test.x[:20] * data.spec.std + data.spec.mean
    return F.interpolate(small, size=(28, 28), mode="bilinear")


@pytest.mark.parametrize("edge", KYMATIO)
def test_kymatios_numbers(edge):
    found = Scattering().transform(picture(edge))[0]
    for path, (inside, corner) in KYMATIO[edge].items():
        # kymatio takes 3.1415 for pi.
        assert found[path, 3, 2].item() == pytest.approx(inside, rel=1e-4)
        assert found[path, 0, 0].item() == pytest.approx(corner, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "inputs", "outputs"),
    [
        ((2, 8), (1, 28, 28), (81, 7, 7)),
        ((2, 8), (3, 32, 32), (243, 8, 8)),
        ((2, 8), (1, 8, 8), (81, 2, 2)),
        ((3, 4), (1, 40, 33), (61, 5, 4)),
        ((1, 3), (2, 5, 7), (8, 2, 3)),
    ],
)
def test_paths_and_places(settings, inputs, outputs):
    x = torch.rand(2, *inputs, generator=torch.Generator().manual_seed(0))
    found = Scattering(*settings).transform(x)
    assert found.shape == (2, *outputs)
    # Records, and channels of one, don't mix.
    alone = torch.cat([Scattering(*settings).transform(x[1:, c : c + 1]) for c in range(inputs[0])], 1)
    assert torch.allclose(found[1:], alone, atol=1e-6)


def test_a_constant_is_in_order_0_alone(raw):
    flat = Scattering().transform(torch.full((1, 1, 28, 28), 0.7))[0]
    assert torch.allclose(flat[0], torch.full((7, 7), 0.7), atol=1e-5)
    assert flat[1:].abs().max() < 1e-5
    darker, lighter = Scattering().transform(raw), Scattering().transform(raw + 0.2)
    assert torch.allclose(lighter[:, 0], darker[:, 0] + 0.2, atol=1e-5)
    assert torch.allclose(lighter[:, 1:], darker[:, 1:], atol=1e-5)


def test_no_frequency_is_amplified():
    """Littlewood and Paley: |phi(w)|^2 and the mean of |psi(w)|^2 and |psi(-w)|^2 add up to at most 1, never to 0."""
    filters = bank(36, 40, 2, 8)
    mirrored = [psi.flip(1, 2).roll((1, 1), (1, 2)) for psi in filters.psi]
    waves = sum((a**2 + b**2).sum(0) for a, b in zip(filters.psi, mirrored, strict=True)) / 2
    whole = (filters.phi[0][:, None] * filters.phi[1]) ** 2 + waves
    assert 0.1 < whole.min() < whole.max() < 1 + 1e-5
    assert whole[0, 0] == pytest.approx(1)


def test_distances_do_not_grow(raw):
    """A coefficient stands for 16 pixels."""
    found = Scattering().transform(raw)
    apart = torch.pdist(raw.flatten(1))
    assert (4 * torch.pdist(found.flatten(1)) <= apart).all()
    assert (4 * found[:, 1:].flatten(1).norm(dim=1) > 0.2 * (raw - raw.mean()).flatten(1).norm(dim=1)).all()


def test_a_small_shift_changes_little():
    """By a pixel, where coefficients are of 4; of noise, which for pixels is a new picture."""
    noise = torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))

    def change(of) -> torch.Tensor:
        before, after = of(noise), of(noise.roll(1, 3))
        return (after - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)

    assert (change(Scattering().transform) < 0.25 * change(lambda x: x)).all()


def test_angles_turn_with_the_picture(raw):
    """The transposed picture has the coefficients of the mirrored angles, transposed: angle k becomes 2 - k of 8."""
    found, turned = (Scattering().transform(x) for x in (raw, raw.mT))
    mirrored = (2 - torch.arange(8)) % 8
    assert torch.allclose(turned[:, 0], found[:, 0].mT, atol=1e-5)
    first, first_turned = (x[:, 1:17].unflatten(1, (2, 8)) for x in (found, turned))
    assert torch.allclose(first_turned, first[:, :, mirrored].mT, atol=1e-5)
    second, second_turned = (x[:, 17:].unflatten(1, (8, 8)) for x in (found, turned))
    assert torch.allclose(second_turned, second[:, mirrored][:, :, mirrored].mT, atol=1e-5)
    assert not torch.allclose(first_turned, first.mT, atol=1e-2)


def test_a_task_has_coefficients_of_its_raw_pictures():
    plain = Classification(Digits(), trigger=None)
    assert (DIGITS.spec.shape, DIGITS.spec.domain, DIGITS.spec.classes) == (
        (81, 2, 2),
        "feature map",
        plain.spec.classes,
    )
    for split in ("train", "test"):
        before, after = getattr(plain.data, split), getattr(DIGITS.data, split)
        assert torch.equal(before.y, after.y)
        pixels = before.x[-3:] * plain.spec.std + plain.spec.mean
        assert torch.allclose(after.x[-3:], Scattering().transform(pixels), atol=1e-5)
    few = Classification(Digits(), trigger=None, records=30, features=Scattering())
    assert few.data.train.y.bincount().tolist() == [3] * 10
    assert few.data.train.x.shape == (30, 81, 2, 2)


def test_what_needs_pictures_is_refused(tmp_path):
    asked = ["task=digits", "task/features=scattering", f"results_dir={tmp_path}"]
    with pytest.raises(ConfigError, match=r"task\.trigger=Patch: null: digits has feature maps, which have no pixels"):
        compose([*asked, "model=scatter_linear"])
    asked.append("task.trigger=null")
    with pytest.raises(ConfigError, match=r"leakage=InvertingGradients: none, or task\.features=null"):
        compose([*asked, "model=scatter_linear", "leakage=inverting_gradients", "leakage.max_batch=null"])
    with pytest.raises(ConfigError, match=r"task\.trigger=None: a trigger, which this poisoner needs"):
        compose([*asked, "model=scatter_linear", "poisoning=backdoor"])
    with pytest.raises(ConfigError, match=r"model=SmallCNN: .*feature map of \(81, 2, 2\)\); SmallCNN takes: image"):
        compose([*asked, "model=small_cnn"])
    with pytest.raises(ConfigError, match=r"augmentation\.shift=1: 0: digits has no pictures but feature maps"):
        Augmentation(shift=1).check(DIGITS.spec)


def test_features_are_of_pictures_that_are_large_enough():
    with pytest.raises(ConfigError, match=r"task\.features=Scattering: null: uci_heart \(table of"):
        Classification(UCIHeart(), trigger=None, features=Scattering()).check(1)
    with pytest.raises(ConfigError, match=r"has no pictures of more than 8 pixels"):
        Classification(Digits(), trigger=None, features=Scattering(scales=3)).check(1)
    for settings in ({"scales": 0}, {"scales": 9}, {"angles": 0}, {"angles": 65}):
        with pytest.raises(ConfigError):
            Scattering(**settings)


def test_models_normalise_groups_of_paths():
    spec = DIGITS.spec
    x = torch.rand(4, *spec.shape) + 3 * torch.arange(4.0)[:, None, None, None]
    normalised = next(make(ScatterLinear(), spec, 0).children())(x).unflatten(1, (27, 3)).flatten(2)
    assert torch.allclose(normalised.mean(2), torch.zeros(4, 27), atol=1e-4)
    assert torch.allclose(normalised.std(2, unbiased=False), torch.ones(4, 27), atol=1e-2)
    with pytest.raises(ConfigError, match=r"model\.groups=2: a divisor of 81"):
        make(ScatterLinear(groups=2), spec, 0)


def test_a_linear_model_on_them_learns_under_dp_sgd(tmp_path):
    prepared = compose([
        "task=digits", "task/features=scattering", "task.trigger=null", "model=scatter_linear", "defense=dp_local",
        "federation.clients=1", "federation.rounds=1", "federation.local.epochs=4", "federation.local.batch_size=256",
        "federation.local.learning_rate=4", "defense.privacy.clip=0.1", "defense.privacy.epsilon=null",
        "defense.privacy.noise_multiplier=1", f"results_dir={tmp_path}",
    ])  # fmt: skip
    assert run(prepared, {}, Progress("test")).status == "complete"
    rows = map(json.loads, (prepared.path / "metrics.jsonl").read_text().splitlines())
    assert [r["value"] for r in rows if r["metric"] == "accuracy"][-1] > 0.8


def test_the_cnn_takes_the_papers_inputs():
    digits = tuple(map(str, range(10)))
    spec = Scattering().spec(Spec("mnist", (1, 28, 28), digits, torch.zeros(1), torch.ones(1), "image"))
    model = make(ScatterCNN(), spec, 0)
    assert model(torch.rand(2, *spec.shape)).shape == (2, 10)
    # The authors' code on 81 x 7 x 7: 11,680 + 4,640 + 16,416 + 330.
    assert sum(p.numel() for p in model.parameters()) == 33_066
    assert make(ScatterCNN(), DIGITS.spec, 0)(torch.rand(2, *DIGITS.spec.shape)).shape == (2, 10)
