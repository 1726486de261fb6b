"""Inverting Gradients (Geiping, Bauermeister, Dröge and Moeller, NeurIPS 2020)."""

from dataclasses import dataclass

from privbench.attacks.leakage.adam import Adam
from privbench.attacks.leakage.family import Optimisation
from privbench.attacks.leakage.noise import noise_share, variation_for_noise
from privbench.attacks.leakage.objectives import Cosine, Objective
from privbench.attacks.leakage.observe import Observation
from privbench.benchmarks.federation.view import Public


@dataclass(frozen=True)
class InvertingGradients(Optimisation):
    """Cosine distance of gradients, total variation, signed Adam inside the range of valid pixels.

    The paper has 4800 iterations. Total variation weighs 0.01 without noise (the paper's for LeNet), and more with
    noise (:func:`~privbench.attacks.leakage.noise.variation_for_noise`).
    """

    iterations: int = 4800
    learning_rate: float = 0.1

    def weight(self, public: Public, observation: Observation) -> float:
        """See :class:`Optimisation`."""
        if self.total_variation != "auto":
            return self.total_variation
        return 0.01 + variation_for_noise(noise_share(public, observation))

    def objective(self, observation: Observation) -> Objective:
        return Cosine()

    def optimiser(self) -> Adam:
        return Adam(self.iterations, self.learning_rate)
