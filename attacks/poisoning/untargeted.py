"""Updates made to spoil the model: ALIE, inner product manipulation and sign flipping."""

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import ClassVar

import torch
from torch import Tensor

from privbench.attacks.poisoning.poisoner import Knowledge, Poisoner, Seen
from privbench.benchmarks.build import require
from privbench.benchmarks.federation.update import Update


@dataclass(frozen=True)
class Untargeted(Poisoner):
    """What its clients send is made of honest updates; each of them sends the same parameters.

    Args:
        clients: how many clients it owns.
        omniscient: whether it asks for the honest updates of its round. Without them, since it didn't ask or since the
            channel hides them, it counts on what its own clients trained (on honest data) instead.
    """

    omniscient: bool = True

    FEWEST: ClassVar[int] = 1
    """Updates that it takes to make one of; of fewer it can make nothing and sends what it trained."""

    @property
    def asks(self) -> frozenset[Knowledge]:
        return frozenset({"honest_updates"}) if self.omniscient else frozenset()

    @property
    def pools(self) -> bool:
        return True

    @property
    def tampers(self) -> bool:
        return True

    def craft(self, update: Update, seen: Seen, generator: torch.Generator) -> Update:
        known = seen.honest or tuple(seen.colluders) or (update,)
        if len(known) < self.FEWEST:
            return update
        p = update.layout.trainable
        vector = update.vector.clone()
        # Buffers stay those of its own training: statistics that no training could make would give it away.
        vector[:p] = self.made(torch.stack([u.vector[:p] for u in known]), seen, known)
        return replace(update, vector=vector)

    def made(self, known: Tensor, seen: Seen, updates: tuple[Update, ...]) -> Tensor:
        """The parameters to send, ``(p,)``.

        Args:
            known: parameters of the updates that it knows, ``(n, p)``.
            seen: what else it knows.
            updates: where ``known`` comes from.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class ALittleIsEnough(Untargeted):
    """``mean + z std`` by coordinate (Baruch et al. 2019, algorithm 3): too near for a rule to tell it apart.

    Args:
        z: in standard deviations; ``None`` is the paper's largest with which enough honest updates stay farther from
            the mean (equation 5): the quantile at (n - m - s) / (n - m), s = floor(n / 2) + 1 - m, of n updates with m
            of the attacker's.
    """

    z: float | None = None

    FEWEST: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.z is None or math.isfinite(self.z), "z", self.z, "a number of standard deviations, or null")

    def deviations(self, cohort: int, attackers: int) -> float:
        """The z of a cohort with so many of the attacker's clients; 0 where it hasn't a majority to win over."""
        if self.z is not None:
            return self.z
        honest, supporters = cohort - attackers, cohort // 2 + 1 - attackers
        if supporters <= 0:  # its own are a majority: any z goes, and the paper's has no bound
            supporters = 1
        share = (honest - supporters) / honest if honest else 0.0
        return NormalDist().inv_cdf(share) if 0 < share < 1 else 0.0

    def made(self, known: Tensor, seen: Seen, updates: tuple[Update, ...]) -> Tensor:
        return known.mean(dim=0) + self.deviations(seen.cohort, len(seen.colluders)) * known.std(dim=0)


@dataclass(frozen=True)
class InnerProduct(Untargeted):
    """``-epsilon mean``: the aggregate's inner product with the honest mean turns negative (Xie et al. 2020).

    Args:
        epsilon: > 0. Small ones (0.1) look honest to distance rules, large ones break means. 1 reverses the sign.
    """

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.epsilon < math.inf, "epsilon", self.epsilon, "positive")

    def made(self, known: Tensor, seen: Seen, updates: tuple[Update, ...]) -> Tensor:
        return known.mean(dim=0) * -self.epsilon
