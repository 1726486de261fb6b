"""Chest X-rays of children."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from privbench.benchmarks.tasks.sources.files import find
from privbench.benchmarks.tasks.sources.raw import Raw, standardise
from privbench.benchmarks.tasks.task import Data

FILE = ("pneumoniamnist.npz", "28209eda62fecd6e6a2d98b1501bb15f")
URL = "https://zenodo.org/records/10519652/files/pneumoniamnist.npz?download=1"
"""medmnist's, like the MD5."""


@dataclass(frozen=True)
class PneumoniaMNIST:
    """PneumoniaMNIST (Yang et al. 2023): 4,708 train, 524 validation, 624 test, 28x28, normal or pneumonia.

    The splits are the official ones; the validation records are not trained on. The file holds 18 exact duplicates
    within the training records, and 8 images in both training and validation.

    Args:
        evaluation: the records that utility is measured on. Tune on ``val``, report on ``test``.
    """

    evaluation: Literal["test", "val"] = "test"

    def load(self, data_dir: str | None) -> Data:
        with np.load(find("pneumoniamnist", *FILE, data_dir, urls=(URL,))) as arrays:
            train, test = (
                Raw(arrays[f"{s}_images"][:, None], arrays[f"{s}_labels"][:, 0]) for s in ("train", self.evaluation)
            )
        return standardise("pneumoniamnist", "image", ("normal", "pneumonia"), train, test, scale=255.0)
