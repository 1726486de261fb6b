"""GradInversion (Yin, Mallya, Vahdat, Alvarez, Kautz and Molchanov, CVPR 2021), without registration of its group."""

from dataclasses import dataclass

from privbench.attacks.leakage.adam import Adam
from privbench.attacks.leakage.batchnorm import Source, statistics
from privbench.attacks.leakage.family import Optimisation
from privbench.attacks.leakage.gradient import ClientGradient
from privbench.attacks.leakage.noise import noise_share, variation_for_noise
from privbench.attacks.leakage.objectives import Cosine, Objective, SquaredDistance
from privbench.attacks.leakage.observe import Observation
from privbench.attacks.leakage.priors import L2, BatchNormStatistics, Prior
from privbench.benchmarks.build import require
from privbench.benchmarks.federation.view import Public


@dataclass(frozen=True)
class GradInversion(Optimisation):
    """Squared distance of gradients by Adam, with total variation, L2, BatchNorm statistics and a group of restarts.

    Args:
        l2: weight of the mean square of standardised records.
        bn: weight of the distance of BatchNorm statistics; 0 for models without.
        bn_statistics: where the expected statistics come from, as
            :func:`~privbench.attacks.leakage.batchnorm.statistics` says: ``running`` or ``update``.
        consistency: weight of the distance from the mean over a target's restarts.
    """

    iterations: int = 2000
    restarts: int = 4
    learning_rate: float = 0.1
    l2: float = 1e-3
    bn: float = 1e-2
    bn_statistics: Source = "running"
    consistency: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("l2", "bn", "consistency"):
            require(0 <= getattr(self, name) < float("inf"), name, getattr(self, name), "a finite weight of 0 or more")

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | ({"bn_statistics"} if self.bn else frozenset())

    def weight(self, public: Public, observation: Observation) -> float:
        """See :class:`Optimisation`."""
        if self.total_variation != "auto":
            return self.total_variation
        return 0.001 + variation_for_noise(noise_share(public, observation))

    def objective(self, observation: Observation) -> Objective:
        return Cosine() if observation.known.clip else SquaredDistance()

    def optimiser(self) -> Adam:
        return Adam(self.iterations, self.learning_rate, signed=False)

    def priors(self, public: Public, observation: Observation, gradient: ClientGradient) -> list[tuple[Prior, float]]:
        found: list[tuple[Prior, float]] = [(L2(), self.l2)] if self.l2 else []
        if self.bn:
            expected = statistics(public, observation, self.bn_statistics)
            found.append((BatchNormStatistics(gradient, expected), self.bn))
        return found

    @property
    def group(self) -> float:
        return self.consistency
