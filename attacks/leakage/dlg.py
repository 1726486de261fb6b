"""Deep Leakage from Gradients (Zhu, Liu and Han, NeurIPS 2019), with iDLG's labels (Zhao et al. 2020)."""

from dataclasses import dataclass

from torch import Tensor

from privbench.attacks.leakage.family import Optimisation
from privbench.attacks.leakage.lbfgs import LBFGS
from privbench.attacks.leakage.noise import noise_share
from privbench.attacks.leakage.objectives import Cosine, Objective, SquaredDistance
from privbench.attacks.leakage.observe import Observation
from privbench.benchmarks.build import require
from privbench.benchmarks.federation.view import Public


@dataclass(frozen=True)
class DLG(Optimisation):
    """Squared distance of gradients by L-BFGS, without constraint on the pixels.

    It wants a twice differentiable model: with ReLU or max pooling the squared distance is a poor guide, as Geiping
    et al. report. Under a published clip the observed gradient has lost its length, so that directions are compared.
    ``labels="inferred"`` is iDLG, ``"joint"`` the paper's own way. ``iterations`` are of L-BFGS, with at most 5/4 as
    many evaluations; the paper has 300 times 20. Total variation is 0 without noise (the paper has no prior), and
    0.03 times the share of the observed gradient that is noise.

    Args:
        history: of L-BFGS.
    """

    history: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.history >= 1, "history", self.history, "at least 1")

    def weight(self, public: Public, observation: Observation) -> float:
        """See :class:`Optimisation`."""
        return 0.03 * noise_share(public, observation) if self.total_variation == "auto" else self.total_variation

    def objective(self, observation: Observation) -> Objective:
        return Cosine() if observation.known.clip else SquaredDistance()

    def optimiser(self) -> LBFGS:
        return LBFGS(self.iterations, self.learning_rate, self.history)

    def box(self, public: Public) -> tuple[Tensor, Tensor] | None:
        return None
