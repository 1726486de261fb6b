"""Inverting Gradients (Geiping, Bauermeister, Dröge and Moeller, NeurIPS 2020)."""

from dataclasses import dataclass
from typing import Literal

import torch

from privbench.attacks.leakage.attack import Reconstruction, check
from privbench.attacks.leakage.gradient import ClientGradient
from privbench.attacks.leakage.labels import Labels, fixed_labels, needs
from privbench.attacks.leakage.noise import noise_share
from privbench.attacks.leakage.objectives import Cosine
from privbench.attacks.leakage.observe import Observation
from privbench.attacks.leakage.optimise import Problem, SignedAdam, check_settings, reconstruct, valid_range
from privbench.benchmarks.federation.view import Public, View


@dataclass(frozen=True)
class InvertingGradients:
    """Cosine distance of gradients, total variation, signed Adam inside the range of valid pixels.

    Args:
        iterations: of signed Adam; the paper has 4800.
        restarts: from different random inputs; the best by the gradient objective is kept.
        learning_rate: of Adam in standardised space, before its decay.
        total_variation: weight of the prior. ``"auto"``: 0.01 without noise (the paper's for LeNet), and 0.03 more
            times the squared share of the observed gradient that is noise.
        labels: ``"inferred"`` from the last layer's gradient, ``"joint"`` with the records, or ``"known"``, which is
            declared side information.
    """

    iterations: int = 4800
    restarts: int = 1
    learning_rate: float = 0.1
    total_variation: float | Literal["auto"] = "auto"
    labels: Labels = "inferred"

    def __post_init__(self) -> None:
        check_settings(self.iterations, self.restarts, self.learning_rate, self.total_variation)

    @property
    def needs(self) -> frozenset[str]:
        return needs(self.labels)

    def weight(self, public: Public, observation: Observation) -> float:
        """The weight of total variation used against this observation."""
        if self.total_variation != "auto":
            return self.total_variation
        return 0.01 + 0.03 * noise_share(public, observation) ** 2

    def reconstruct(self, view: View, observation: Observation, generator: torch.Generator) -> Reconstruction:
        """See :class:`~privbench.attacks.leakage.attack.Attack`."""
        check(view, observation)
        public = view.public
        problem = Problem(
            ClientGradient(public, observation.model),
            observation.gradient,
            Cosine(),
            fixed_labels(self.labels, public, observation, generator),
            self.weight(public, observation),
            valid_range(public),
        )
        optimiser = SignedAdam(self.iterations, self.learning_rate)
        return reconstruct(public, problem, optimiser, observation.records, self.restarts, generator)
