"""The whole of MNIST."""

import gzip
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from privbench.benchmarks.tasks.sources.files import find, look
from privbench.benchmarks.tasks.sources.raw import Raw, standardise
from privbench.benchmarks.tasks.task import Data

URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
"""torchvision's mirror; the MD5 sums are torchvision's."""

TRAIN_IMAGES = ("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873")
TRAIN_LABELS = ("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432")
TEST_IMAGES = ("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3")
TEST_LABELS = ("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c")
FOLDERS = ("MNIST/raw",)
"""Where torchvision puts them."""

SORTED_TRAIN = ("mnist_train_sha_order.npz", "2375daff0ce9c19b0216d1efbc1fd1fefea6120caa1041bab290e87e2f5aeb13")


@dataclass(frozen=True)
class MNIST:
    """MNIST (LeCun et al. 1998): 60,000 train, 10,000 test, 28x28, ten digits.

    The files are those that torchvision downloads. In place of the training images, ``mnist_train_sha_order.npz`` is
    accepted: the same images in the order of the SHA-256 of their pixels. Training records are put into that order
    whichever file they come from, so that both give the same numbers.
    """

    def load(self, data_dir: str | None) -> Data:
        test = Raw(_images(_file(TEST_IMAGES, data_dir)), _labels(_file(TEST_LABELS, data_dir)))
        classes = tuple(str(digit) for digit in range(10))
        return standardise("mnist", "image", classes, _train(data_dir), test, scale=255.0)


def _train(data_dir: str | None) -> Raw:
    if look("mnist", *TRAIN_IMAGES, data_dir, FOLDERS) is None:
        path = look("mnist", *SORTED_TRAIN, data_dir)
        if path is not None:
            with np.load(path) as arrays:
                return Raw(arrays["x"][:, None], arrays["y"])
    x, y = _images(_file(TRAIN_IMAGES, data_dir)), _labels(_file(TRAIN_LABELS, data_dir))
    order = sorted(range(len(x)), key=lambda i: sha256(x[i].tobytes()).digest())
    return Raw(x, y).take(np.array(order))


def _file(named: tuple[str, str], data_dir: str | None) -> Path:
    return find("mnist", *named, data_dir, urls=(URL + named[0],), folders=FOLDERS)


def _images(path: Path) -> np.ndarray:
    """The idx3 format: a header of 16 bytes, then the pixels."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=16).reshape(-1, 1, 28, 28)


def _labels(path: Path) -> np.ndarray:
    """The idx1 format: a header of 8 bytes, then the labels."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=8)
