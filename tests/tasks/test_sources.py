"""Every data set that is at hand: sizes, classes, standardisation, and that train and test are kept apart."""

import gzip
import hashlib
import io
import pickle
import tarfile
from collections import Counter

import numpy as np
import pytest
import torch

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.tasks.sources import (
    CIFAR10,
    CIFAR10JPEG,
    MITBIH,
    MNIST,
    NIHCXR,
    Digits,
    MNIST5k,
    PneumoniaMNIST,
    UCIHeart,
    cifar10,
    mnist,
    pneumonia,
)
from privbench.benchmarks.tasks.sources.raw import Raw, every, standardise
from privbench.benchmarks.tasks.task import Split

SETS = {
    MNIST5k(): (None, (1, 28, 28), [400] * 10, [100] * 10),
    Digits(): (None, (1, 8, 8), None, None),
    PneumoniaMNIST(): ("pneumoniamnist", (1, 28, 28), [1214, 3494], [234, 390]),
    PneumoniaMNIST("val"): ("pneumoniamnist", (1, 28, 28), [1214, 3494], [135, 389]),
    UCIHeart(): ("uci_heart", (22,), [276, 341], [135, 168]),
    NIHCXR(size=32): ("nih_cxr_1k", (1, 32, 32), [395, 401], [105, 99]),
    MITBIH(): ("mitbih", (1, 180), [45839, 943, 3788], [42176, 1782, 3201]),
    CIFAR10JPEG(200, 100): ("cifar10_jpeg", (3, 32, 32), [20] * 10, [10] * 10),
}


@pytest.mark.parametrize("source", SETS, ids=str)
def test_data_set(source, published):
    name, shape, train_counts, test_counts = SETS[source]
    if name is not None:
        published(name)
    data = source.load(None)
    spec = data.spec
    assert spec.shape == shape
    for split, counts in ((data.train, train_counts), (data.test, test_counts)):
        assert split.x.shape == (len(split), *shape)
        assert split.x.dtype == torch.float32
        assert split.x.is_contiguous()
        assert split.y.dtype == torch.int64
        assert set(split.y.tolist()) == set(range(len(spec.classes)))
        assert counts is None or split.y.bincount().tolist() == counts
        assert (split.group is None) == (spec.group is None)
        assert split.group is None or split.group.dtype == torch.int64
    over = [0, *range(2, data.train.x.ndim)]
    assert torch.allclose(data.train.x.mean(over), torch.zeros(1), atol=1e-3)
    assert torch.allclose(data.train.x.std(over), torch.ones(1), atol=2e-3)
    raw = data.test.x * spec.std + spec.mean
    assert raw.shape == data.test.x.shape
    if spec.domain == "image":
        assert raw.min() > -1e-5
        assert raw.max() < 1 + 1e-5


def test_mnist_from_either_layout_is_the_same(published, tmp_path, monkeypatch):
    """The originals are imitated: the same images in another order, as idx files."""
    folder = published("mnist")
    data = MNIST().load(None)
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    assert data.spec.mean.item() == pytest.approx(0.1307, abs=1e-4)
    with np.load(folder / "mnist_train_sha_order.npz") as arrays:
        x, y = arrays["x"][:500], arrays["y"][:500]
    order = np.random.default_rng(0).permutation(500)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for field, header, content in (("TRAIN_IMAGES", 16, x), ("TRAIN_LABELS", 8, y)):
        name = getattr(mnist, field)[0]
        (raw / name).write_bytes(gzip.compress(bytes(header) + content[order].tobytes()))
        monkeypatch.setattr(mnist, field, (name, hashlib.sha256((raw / name).read_bytes()).hexdigest()))
    again = MNIST().load(str(tmp_path))
    one, other = (s.train.x[:500] * s.spec.std + s.spec.mean for s in (data, again))
    assert torch.allclose(one, other, atol=1e-6)
    assert torch.equal(data.train.y[:500], again.train.y)


def test_cifar10_reads_the_published_format(tmp_path, monkeypatch):
    path = tmp_path / "cifar-10-python.tar.gz"
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3072), dtype=np.uint8)
    with tarfile.open(path, "w:gz") as archive:
        for batch in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
            content = pickle.dumps({"data": pixels, "labels": list(range(10))})
            member = tarfile.TarInfo(f"cifar-10-batches-py/{batch}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(cifar10, "FILE", (path.name, hashlib.sha256(path.read_bytes()).hexdigest()))
    data = CIFAR10().load(str(tmp_path))
    assert (len(data.train), len(data.test)) == (50, 10)
    raw = (data.test.x * data.spec.std + data.spec.mean) * 255
    assert torch.allclose(raw, torch.from_numpy(pixels).reshape(10, 3, 32, 32).float(), atol=1e-3)


def test_checksums_are_the_publishers():
    import medmnist
    import torchvision

    theirs = {**dict(torchvision.datasets.MNIST.resources), torchvision.datasets.CIFAR10.filename: cifar10.FILE[1]}
    ours = dict((mnist.TRAIN_IMAGES, mnist.TRAIN_LABELS, mnist.TEST_IMAGES, mnist.TEST_LABELS, cifar10.FILE))
    assert ours == theirs
    assert torchvision.datasets.CIFAR10.tgz_md5 == cifar10.FILE[1]
    assert torchvision.datasets.CIFAR10.url == cifar10.URL
    assert mnist.URL in torchvision.datasets.MNIST.mirrors
    assert pneumonia.FILE[1] == medmnist.INFO["pneumoniamnist"]["MD5"]
    assert medmnist.INFO["pneumoniamnist"]["url"] == pneumonia.URL


def groups(split: Split) -> Counter[int]:
    assert split.group is not None
    return Counter(split.group.tolist())


@pytest.mark.parametrize(
    ("source", "name", "patients"), [(NIHCXR(32), "nih_cxr_1k", (546, 136)), (MITBIH(), "mitbih", (22, 21))], ids=str
)
def test_no_patient_is_in_both_splits(source, name, patients, published):
    published(name)
    data = source.load(None)
    train, test = groups(data.train), groups(data.test)
    assert (len(train), len(test)) == patients
    assert not train & test


def test_the_published_ds2_shares_one_patient(published):
    published("mitbih")
    data = MITBIH(("N", "S", "V", "F", "Q"), patient_disjoint=False).load(None)
    assert set(groups(data.train)) & set(groups(data.test)) == {201}
    assert len(data.test) == 49_688


def test_mitbih_labels_follow_the_classes_asked_for(published):
    published("mitbih")
    data = MITBIH(("V", "N")).load(None)
    assert data.spec.classes == ("V", "N")
    assert data.train.y.bincount().tolist() == [3788, 45839]


def test_heart_is_four_hospitals_without_missing_values(published):
    published("uci_heart")
    data = UCIHeart().load(None)
    assert len(data.spec.features) == 22
    assert data.spec.features[:3] == ("age", "sex", "cp=1")
    assert groups(data.train) == {0: 203, 1: 197, 2: 83, 3: 134}
    assert groups(data.test) == {0: 100, 1: 97, 2: 40, 3: 66}
    raw = data.train.x * data.spec.std + data.spec.mean
    assert raw.isfinite().all()
    # chest pain, resting ECG, slope and thallium scan are one-hot
    for first, codes in ((2, 4), (9, 3), (15, 3), (19, 3)):
        assert torch.allclose(raw[:, first : first + codes].sum(1), torch.ones(len(raw)), atol=1e-4), first
    assert torch.allclose(raw[0, :2], torch.tensor([63.0, 1.0]), atol=1e-4)


def test_area_reduction_averages_pixels(published):
    folder = published("nih_cxr_1k")
    with np.load(folder / "nih_cxr_1k_128.npz") as arrays:
        first = arrays["x"][0]
    data = NIHCXR(64).load(None)
    raw = (data.train.x * data.spec.std + data.spec.mean)[:5, 0] * 255
    averages = torch.from_numpy(first.reshape(64, 2, 64, 2).mean((1, 3))).float()
    assert min((r - averages).abs().max() for r in raw) < 1e-3


def test_every_is_stratified():
    strata = np.array([0, 0, 1, 0, 1, 0, 1, 0])
    assert every(2, strata).tolist() == [False, True, False, False, True, True, False, False]


def test_constant_features_stay_finite():
    raw = Raw(np.array([[3.0, 1.0], [3.0, 2.0]]), np.array([0, 1]))
    data = standardise("toy", "table", ("a", "b"), raw, raw)
    assert data.train.x.tolist() == [[0.0, -1.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    "make",
    [
        lambda: MITBIH(("N",)),
        lambda: MITBIH(("N", "X")),
        lambda: MITBIH(("N", "N")),
        lambda: NIHCXR(256),
        lambda: CIFAR10JPEG(0),
        lambda: CIFAR10JPEG(test_records=10_001),
    ],
)
def test_bad_settings_are_refused(make):
    with pytest.raises(ConfigError):
        make()
