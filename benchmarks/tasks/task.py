"""A task owns its data, its loss, its evaluation and its trigger."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Records.

    Args:
        x: inputs, ``(n, *shape)``, float32, standardised.
        y: labels, ``(n,)``, int64.
        group: what the record belongs to (hospital, patient), ``(n,)`` int64, or ``None``.
    """

    x: Tensor
    y: Tensor
    group: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: Tensor) -> "Split":
        """The records at ``index`` (``(m,)`` int64), copied."""
        return Split(self.x[index], self.y[index], None if self.group is None else self.group[index])
