from privbench.defenses.release.release import BandedGaussian, CentralGaussian, Release, Unchanged

__all__ = ["BandedGaussian", "CentralGaussian", "Release", "Unchanged"]
