"""CIFAR-10 after lossy compression: not CIFAR-10, and results must say so."""

from dataclasses import dataclass
from io import BytesIO

import numpy as np

from privbench.benchmarks.build import require
from privbench.benchmarks.tasks.sources.cifar10 import CLASSES
from privbench.benchmarks.tasks.sources.files import find
from privbench.benchmarks.tasks.sources.raw import Raw, standardise
from privbench.benchmarks.tasks.task import Data

FILE = ("cifar10_jpeg.npz", "4ff732dee2b7843c927479ae8d8d3526f926984ffdf461fbaafd25174c7e4e2c")


@dataclass(frozen=True)
class CIFAR10JPEG:
    """JPEG CIFAR-10: all images of CIFAR-10 (Krizhevsky 2009), re-encoded as JPEG (quality about 75, 4:2:0).

    Images are decoded by Pillow; classes take turns in the file, so that any prefix is balanced.

    Args:
        train_records, test_records: use only the first so many; null for all 50,000 and 10,000.
    """

    train_records: int | None = None
    test_records: int | None = None

    def __post_init__(self) -> None:
        for name, most in (("train_records", 50_000), ("test_records", 10_000)):
            value = getattr(self, name)
            require(value is None or 1 <= value <= most, name, value, f"from 1 to {most}, or null for all")

    def load(self, data_dir: str | None) -> Data:
        hint = "a re-encoding that nobody publishes under this checksum; task=cifar10 is the original"
        with np.load(find("cifar10_jpeg", *FILE, data_dir, hint=hint)) as arrays:
            train = _decode(arrays, "train", self.train_records)
            test = _decode(arrays, "test", self.test_records)
        return standardise("cifar10_jpeg", "image", CLASSES, train, test, scale=255.0)


def _decode(arrays: "np.lib.npyio.NpzFile", split: str, records: int | None) -> Raw:
    from PIL import Image

    labels = arrays[f"{split}_y"][:records]
    offsets = arrays[f"{split}_offset"]
    stream = arrays[f"{split}_jpeg"]
    images = np.empty((len(labels), 3, 32, 32), np.uint8)
    for i in range(len(labels)):
        with Image.open(BytesIO(stream[offsets[i] : offsets[i + 1]].tobytes())) as image:
            images[i] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    return Raw(images, labels)
