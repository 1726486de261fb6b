"""What an attack does about a defense that it knows of."""

from math import sqrt

from privbench.attacks.leakage.observe import Observation
from privbench.benchmarks.federation.view import Public


def noise_share(public: Public, observation: Observation) -> float:
    """How much of the observed gradient's length is noise, in [0, 1]: ``min(1, std sqrt(d) / |g|)``.

    ``std`` per coordinate of the mean gradient is ``noise_std`` of the public defense, or else
    ``noise_multiplier * clip / records``.
    """
    defense = public.defense
    std = defense.get("noise_std")
    if std is None:
        std = (defense.get("noise_multiplier") or 0.0) * (defense.get("clip") or 0.0) / observation.records
    length = float(observation.gradient.norm())
    return min(1.0, float(std) * sqrt(len(observation.gradient)) / length) if length else 1.0
