"""Batches of patients, each of whom is clipped as a whole."""

from dataclasses import dataclass

import torch
from torch import Tensor

from privbench.defenses.local.per_sample.engine import Units


@dataclass(frozen=True)
class Patients:
    """Whose a client's records are.

    Args:
        order: records by patient, ``(n,)``.
        first, count: of each patient's records in ``order``, ``(patients,)``.
        most: records of a patient in one step.
    """

    order: Tensor
    first: Tensor
    count: Tensor
    most: int

    @staticmethod
    def of(group: Tensor, most: int) -> "Patients":
        """From the patient of each record, ``(n,)`` int64."""
        order = group.argsort(stable=True)
        count = group.unique(return_counts=True)[1]
        return Patients(order, count.cumsum(0) - count, count, most)

    def __len__(self) -> int:
        return len(self.count)

    def drawn(self, x: Tensor, y: Tensor, patients: Tensor, generator: torch.Generator) -> list[Units]:
        """Units of the chosen patients, at most ``most`` records of each at random; patients with as many are together.

        Args:
            x, y: all records of the client.
            patients: numbers, ``(m,)`` int64.
            generator: on the CPU.
        """
        if len(patients) == 0:
            return []
        # A random order of each patient's records: sorted by a random key, which is infinite where there are no more.
        count, first = self.count[patients], self.first[patients]
        place = torch.arange(int(count.max()))
        key = torch.rand(len(patients), len(place), generator=generator)
        order = first[:, None] + key.masked_fill(place >= count[:, None], torch.inf).argsort(1)
        used, parts = count.clamp(max=self.most), []
        for number in used.unique().tolist():
            index = self.order[order[used == number, :number]].flatten().to(x.device)
            parts.append(Units(x[index], y[index], number))
        return parts
