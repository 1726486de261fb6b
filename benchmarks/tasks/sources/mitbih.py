"""Heartbeats from the MIT-BIH Arrhythmia Database."""

from dataclasses import dataclass

import numpy as np

from privbench.benchmarks.build import require
from privbench.benchmarks.tasks.sources.files import find
from privbench.benchmarks.tasks.sources.raw import Raw, standardise
from privbench.benchmarks.tasks.task import Data

FILE = ("mitbih_beats.npz", "c645f54978c7e444c909993343685bbbd7b91b11f684b593ccf6c9a8140a2a44")

AAMI = ("N", "S", "V", "F", "Q")
"""ANSI/AAMI EC57: normal, supraventricular, ventricular, fusion, unknown or paced."""

DS1 = (101, 106, 108, 109, 112, 114, 115, 116, 118, 119, 122, 124, 201, 203, 205, 207, 208, 209, 215, 220, 223, 230)
DS2 = (100, 103, 105, 111, 113, 117, 121, 123, 200, 202, 210, 212, 213, 214, 219, 221, 222, 228, 231, 232, 233, 234)
ZERO, GAIN = 1024, 200
"""Analogue-to-digital units at 0 mV, and per mV."""


@dataclass(frozen=True)
class MITBIH:
    """Beats of 180 samples at 180 Hz in mV, from 0.4 s before the annotation to 0.6 s after (Moody and Mark 2001).

    Train on DS1 and test on DS2, the split by record of de Chazal et al. 2004, which leaves out the four paced records.
    Their split is not quite one by patient: record 201 (DS1) and record 202 (DS2) are one person.

    Args:
        classes: which AAMI classes, in the order of the labels; beats of the others are left out.
        patient_disjoint: leave record 202 out of the test records; ``false`` is the published DS2.
    """

    classes: tuple[str, ...] = ("N", "S", "V")
    patient_disjoint: bool = True

    def __post_init__(self) -> None:
        fits = len(self.classes) > 1 and len({*self.classes} & {*AAMI}) == len(self.classes)
        require(fits, "classes", self.classes, f"two or more different ones of {', '.join(AAMI)}")

    def load(self, data_dir: str | None) -> Data:
        hint = "cut the beats from PhysioNet's mitdb 1.0.0 as docs/tasks.md says"
        with np.load(find("mitbih", *FILE, data_dir, hint=hint)) as arrays:
            x, y, record = arrays["x"], arrays["y"], arrays["record"].astype(np.int64)
        label = np.array([self.classes.index(c) if c in self.classes else -1 for c in AAMI])[y]
        patient = np.where(record == 202, 201, record)

        def beats(records: tuple[int, ...]) -> Raw:
            chosen = np.isin(record, records) & (label >= 0)
            return Raw((x[chosen, None] - np.float32(ZERO)) / np.float32(GAIN), label[chosen], patient[chosen])

        test = tuple(r for r in DS2 if not (self.patient_disjoint and r == 202))
        return standardise("mitbih", "signal", self.classes, beats(DS1), beats(test), group="patient")
