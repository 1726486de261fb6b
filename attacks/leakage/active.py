"""Attacks by an operator that sends models of its own making."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from privbench.attacks.leakage.attack import Attack
from privbench.benchmarks.federation.view import Public


class ActiveAttack(Attack, Protocol):
    """An attack that needs ``model_modification``: it also makes the model that its victims get."""

    def craft(self, public: Public, model: Tensor) -> Tensor:
        """The vector to send in place of ``model``, both ``(layout.size,)``; ``model`` itself is left as it is.

        Raises:
            AttackFailed: if it can't make one of a model of this architecture.
        """
        ...


@dataclass(frozen=True)
class Targeted:
    """The distribution of an operator who sends an attack's model to its victims, and the round's to all others.

    Args:
        attack: that crafts.
        public: what is known of the federation.
        victims: by number.
    """

    attack: ActiveAttack
    public: Public
    victims: Collection[int]

    def craft(self, model: Tensor, client: int) -> Tensor:
        """See :class:`~privbench.benchmarks.federation.distribution.Distribution`."""
        return self.attack.craft(self.public, model) if client in self.victims else model
