"""What an attack does about a defense that it knows of."""

from math import hypot, sqrt

from privbench.attacks.leakage.observe import Observation
from privbench.benchmarks.federation.view import Known, Public


def noise_share(public: Public, observation: Observation) -> float:
    """How much of the observed gradient's length is noise, in [0, 1]: ``min(1, std sqrt(d) / |g|)``.

    ``std`` is that of one coordinate of the mean gradient: ``z C / records`` a local step for noise on gradients
    (averaged over the steps), ``noise_std`` for noise on the vector, in the gradient's unit.
    """
    known = published(public, observation)
    per_step = known.noise_multiplier * (known.clip or 0.0) / observation.records / sqrt(observation.steps)
    unit = public.learning_rate * observation.steps if public.kind == "update" else 1.0
    std = hypot(per_step, known.noise_std / unit)
    length = float(observation.gradient.norm())
    return min(1.0, std * sqrt(len(observation.gradient)) / length) if length else 1.0


def published(public: Public, observation: Observation) -> Known:
    """What is known of the protection on what was observed: noise that the server adds is not on what it receives."""
    return public.defense.get(observation.source, Known())
