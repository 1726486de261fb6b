"""CIFAR-10 as published."""

import pickle
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from privbench.benchmarks.tasks.sources.files import find
from privbench.benchmarks.tasks.sources.raw import Raw, standardise
from privbench.benchmarks.tasks.task import Data

FILE = ("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a")
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
"""torchvision's, like the MD5."""

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class CIFAR10:
    """CIFAR-10 (Krizhevsky 2009): 50,000 train, 10,000 test, 32x32 RGB, ten classes."""

    def load(self, data_dir: str | None) -> Data:
        path = find("cifar10", *FILE, data_dir, urls=(URL,))
        train = _read(path, [f"data_batch_{i}" for i in range(1, 6)])
        return standardise("cifar10", "image", CLASSES, train, _read(path, ["test_batch"]), scale=255.0)


def _read(path: Path, batches: list[str]) -> Raw:
    images, labels = [], []
    with tarfile.open(path) as archive:
        for batch in batches:
            member = archive.extractfile(f"cifar-10-batches-py/{batch}")
            assert member is not None
            # A pickle runs what it says; this one's checksum has been verified.
            content = pickle.load(member, encoding="latin1")
            images.append(content["data"].reshape(-1, 3, 32, 32))
            labels += content["labels"]
    return Raw(np.concatenate(images), np.array(labels))
