"""Four hospitals' records of heart disease."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from privbench.benchmarks.tasks.sources.files import find
from privbench.benchmarks.tasks.sources.raw import Raw, every, standardise
from privbench.benchmarks.tasks.task import Data

URL = "https://archive.ics.uci.edu/ml/machine-learning-databases/heart-disease/"

HOSPITALS = {
    "cleveland": "2d91a8ff69cfd9616aa47b59d6f843db",
    "hungarian": "22e96bee155b5973568101c93b3705f6",
    "switzerland": "9a87f7577310b3917730d06ba9349e20",
    "va": "4249d03ca7711e84f4444768c9426170",
}
"""MD5 by hospital, as in FLamby (du Terrail et al. 2022)."""

COLUMNS = (
    "age",
    "sex",
    "cp",
    "trestbps",
    "chol",
    "fbs",
    "restecg",
    "thalach",
    "exang",
    "oldpeak",
    "slope",
    "ca",
    "thal",
)
CODES = {"cp": (1, 2, 3, 4), "restecg": (0, 1, 2), "slope": (1, 2, 3), "thal": (3, 6, 7)}
"""Categorical columns and their codes, which become one feature each."""
FEATURES = tuple(f for c in COLUMNS for f in ([f"{c}={code}" for code in CODES[c]] if c in CODES else [c]))


@dataclass(frozen=True)
class UCIHeart:
    """Heart Disease (Janosi et al. 1988): 920 patients of four hospitals, 22 features; disease is ``num > 0``.

    Of each hospital and class every third record, in file order, is a test record: two thirds train, as in FLamby. A
    missing value (``?``) becomes the median of the training records of all hospitals that have it; the lower one of
    two, so that a code stays a code.
    """

    def load(self, data_dir: str | None) -> Data:
        tables = [
            _read(find("uci_heart", _name(h), md5, data_dir, urls=(URL + _name(h),))) for h, md5 in HOSPITALS.items()
        ]
        table = np.concatenate(tables)
        hospital = np.repeat(np.arange(len(tables)), [len(t) for t in tables])
        disease = (table[:, -1] > 0).astype(np.int64)
        test = every(3, 2 * hospital + disease)
        x = _features(_impute(table[:, :-1], ~test))
        raw = Raw(x, disease, hospital)
        classes = ("no disease", "disease")
        return standardise(
            "uci_heart", "table", classes, raw.take(~test), raw.take(test), group="hospital", features=FEATURES
        )


def _name(hospital: str) -> str:
    return f"processed.{hospital}.data"


def _read(path: Path) -> np.ndarray:
    lines = path.read_text(encoding="ascii").split()
    return np.array([[float("nan" if v == "?" else v) for v in line.split(",")] for line in lines])


def _impute(table: np.ndarray, train: np.ndarray) -> np.ndarray:
    median = np.nanpercentile(table[train], 50, axis=0, method="lower")
    return np.where(np.isnan(table), median, table)


def _features(table: np.ndarray) -> np.ndarray:
    columns = []
    for name, values in zip(COLUMNS, table.T, strict=True):
        columns += [values == code for code in CODES[name]] if name in CODES else [values]
    return np.stack(columns, axis=1).astype(np.float32)
