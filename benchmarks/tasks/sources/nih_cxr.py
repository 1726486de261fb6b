"""Chest X-rays of the NIH Clinical Center."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from privbench.benchmarks.build import require
from privbench.benchmarks.tasks.sources.files import find
from privbench.benchmarks.tasks.sources.raw import Raw, every, standardise
from privbench.benchmarks.tasks.task import Data

FILE = ("nih_cxr_1k_128.npz", "022aa18e6ca30a72969db220323c91c103ae6fb7cf574bb5b64dc7cbb4ebf2e2")


@dataclass(frozen=True)
class NIHCXR:
    """1,000 frontal images of ChestX-ray14 (Wang et al. 2017): 500 without finding, 500 pneumonia, 682 patients.

    The choice of images is that of Ozturk et al. 2020. No patient is in both train and test: of the patients with
    healthy images alone, with pneumonia alone and with both, each fifth by number is a test patient.

    Args:
        size: edge in pixels, up to the 128 of the file; smaller ones are averages over areas.
    """

    size: int = 128

    def __post_init__(self) -> None:
        require(8 <= self.size <= 128, "size", self.size, "from 8 to 128 pixels")

    def load(self, data_dir: str | None) -> Data:
        hint = "choose the 1,000 images from the NIH's ChestX-ray14 and reduce them to 128 pixels; see docs/tasks.md"
        with np.load(find("nih_cxr_1k", *FILE, data_dir, hint=hint)) as arrays:
            x, y, patient = arrays["x"][:, None], arrays["y"].astype(np.int64), arrays["patient"]
        if self.size < x.shape[-1]:
            x = F.interpolate(torch.from_numpy(x).float(), (self.size, self.size), mode="area").numpy()
        raw, test = Raw(x, y, patient), _test_records(y, patient)
        classes = ("no finding", "pneumonia")
        return standardise("nih_cxr", "image", classes, raw.take(~test), raw.take(test), scale=255.0, group="patient")


def _test_records(y: np.ndarray, patient: np.ndarray) -> np.ndarray:
    patients = np.unique(patient)
    ill, healthy = np.isin(patients, patient[y == 1]), np.isin(patients, patient[y == 0])
    return np.isin(patient, patients[every(5, ill + 2 * healthy)])
