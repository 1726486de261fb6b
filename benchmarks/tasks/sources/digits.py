"""1,797 handwritten digits that come with scikit-learn."""

from dataclasses import dataclass

import numpy as np

from privbench.benchmarks.tasks.sources.files import verify_arrays
from privbench.benchmarks.tasks.sources.raw import Raw, every, standardise
from privbench.benchmarks.tasks.task import Data

SHA256 = "65e5b4619795efb40c1082f4c350c049e4ad552200d369b6ae99e21eef5e72c5"
"""Of the pixels as uint8, then the labels as int64, in file order."""


@dataclass(frozen=True)
class Digits:
    """Handwritten digits (Alpaydin and Kaynak 1998), 8x8, from ``sklearn.datasets.load_digits``; needs no file.

    Every fifth record of each class, in file order, is a test record, whatever the seed.
    """

    def load(self, data_dir: str | None) -> Data:
        from sklearn.datasets import load_digits

        pixels, labels = map(np.asarray, load_digits(return_X_y=True))
        x, y = pixels.astype(np.uint8).reshape(-1, 1, 8, 8), labels.astype(np.int64)
        verify_arrays("scikit-learn's digits", SHA256, x, y)
        test = every(5, y)
        raw = Raw(x, y)
        classes = tuple(str(digit) for digit in range(10))
        return standardise("digits", "image", classes, raw.take(~test), raw.take(test), scale=16.0)
