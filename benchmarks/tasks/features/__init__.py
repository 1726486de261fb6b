"""Features: what is computed of the records once, before any training."""

from privbench.benchmarks.tasks.features.scattering import Scattering

__all__ = ["Scattering"]
