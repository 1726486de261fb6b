"""Deep Leakage from Gradients (Zhu, Liu and Han, NeurIPS 2019), with iDLG's labels (Zhao et al. 2020)."""

from dataclasses import dataclass
from typing import Literal

import torch

from privbench.attacks.leakage.attack import Reconstruction, check
from privbench.attacks.leakage.gradient import ClientGradient
from privbench.attacks.leakage.labels import Labels, fixed_labels, needs
from privbench.attacks.leakage.noise import noise_share
from privbench.attacks.leakage.objectives import Cosine, SquaredDistance
from privbench.attacks.leakage.observe import Observation
from privbench.attacks.leakage.optimise import LBFGS, Problem, check_settings, reconstruct
from privbench.benchmarks.build import require
from privbench.benchmarks.federation.view import Public, View


@dataclass(frozen=True)
class DLG:
    """Squared distance of gradients by L-BFGS, without constraint on the pixels.

    It wants a twice differentiable model: with ReLU or max pooling the squared distance is a poor guide, as Geiping
    et al. report. Under a published clip the observed gradient has lost its length, so that directions are compared.

    Args:
        iterations: of L-BFGS, with at most 5/4 as many evaluations; the paper has 300 times 20.
        restarts: from different random inputs; the best by the gradient objective is kept.
        learning_rate: first step length of the line search.
        total_variation: weight of the prior. ``"auto"``: 0 without noise (the paper has no prior), 0.03 times the share
            of the observed gradient that is noise.
        labels: ``"inferred"`` from the last layer's gradient (iDLG), ``"joint"`` with the records as the softmax of
            free logits (the paper), or ``"known"``, which is declared side information.
        history: of L-BFGS.
    """

    iterations: int = 300
    restarts: int = 1
    learning_rate: float = 1.0
    total_variation: float | Literal["auto"] = "auto"
    labels: Labels = "inferred"
    history: int = 100

    def __post_init__(self) -> None:
        check_settings(self.iterations, self.restarts, self.learning_rate, self.total_variation)
        require(self.history >= 1, "history", self.history, "at least 1")

    @property
    def needs(self) -> frozenset[str]:
        return needs(self.labels)

    def weight(self, public: Public, observation: Observation) -> float:
        """The weight of total variation used against this observation."""
        return 0.03 * noise_share(public, observation) if self.total_variation == "auto" else self.total_variation

    def reconstruct(self, view: View, observation: Observation, generator: torch.Generator) -> Reconstruction:
        """See :class:`~privbench.attacks.leakage.attack.Attack`."""
        check(view, observation)
        public = view.public
        problem = Problem(
            ClientGradient(public, observation.model),
            observation.gradient,
            Cosine() if observation.known.clip else SquaredDistance(),
            fixed_labels(self.labels, public, observation, generator),
            self.weight(public, observation),
        )
        optimiser = LBFGS(self.iterations, self.learning_rate, self.history)
        return reconstruct(public, problem, optimiser, observation.records, self.restarts, generator)
