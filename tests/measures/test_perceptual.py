"""LPIPS with a stand-in for AlexNet's weights, which are not shipped; never with a download."""

import hashlib

import pytest
import torch

from privbench.benchmarks.measures import perceptual


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: pytest.fail("a download was tried"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def pair():
    a = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return a, a.flip(0)


def stand_in(hub, monkeypatch, content: bytes = b"weights"):
    name = f"alexnet-owt-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setattr(perceptual, "BACKBONE", name)
    (hub / name).write_bytes(content)
    return hub / name


def test_without_weights_there_is_no_number(hub, pair):
    assert perceptual.backbone() is None
    assert perceptual.lpips(*pair) is None


def test_a_file_with_another_digest_is_not_the_weights(hub, monkeypatch):
    path = stand_in(hub, monkeypatch)
    assert perceptual.backbone() == path
    path.write_bytes(b"half a down")
    assert perceptual.backbone() is None


def test_without_torchmetrics_there_is_no_number(hub, monkeypatch, pair):
    stand_in(hub, monkeypatch)
    monkeypatch.setattr(perceptual, "find_spec", lambda name: None)
    assert perceptual.lpips(*pair) is None


@pytest.mark.parametrize("shape", [(1, 1, 28, 28), (1, 2, 32, 32)])
def test_images_that_it_is_not_defined_for(hub, monkeypatch, shape):
    stand_in(hub, monkeypatch)
    assert perceptual.lpips(torch.zeros(shape), torch.zeros(shape)) is None


@pytest.mark.parametrize("channels", [1, 3])
def test_with_weights_alike_images_are_nearer(hub, monkeypatch, pair, channels):
    pytest.importorskip("torchmetrics")
    import torchvision

    stand_in(hub, monkeypatch)
    torch.manual_seed(0)
    random = torchvision.models.alexnet(weights=None)
    asked = []
    monkeypatch.setattr(torchvision.models, "alexnet", lambda weights: asked.append(weights) or random)
    a, b = (x[:, :channels] for x in pair)
    same, near, far = (perceptual.lpips(a, x) for x in (a, (a + 0.02).clamp(0, 1), b))
    assert same is not None
    assert near is not None
    assert far is not None
    assert same.shape == (3,)
    assert same.abs().max() < 1e-6
    assert (far[[0, 2]] > near[[0, 2]]).all()
    assert asked[0] == torchvision.models.AlexNet_Weights.DEFAULT
