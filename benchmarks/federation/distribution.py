"""How the global model reaches clients."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Distribution(Protocol):
    """An active operator may send each client a model of its own making."""

    def craft(self, model: Tensor, client: int) -> Tensor:
        """The vector that ``client`` receives; ``model`` itself (the same object) where nothing is changed."""
        ...


@dataclass(frozen=True)
class Honest:
    """Everybody gets the global model."""

    def craft(self, model: Tensor, client: int) -> Tensor:
        return model
