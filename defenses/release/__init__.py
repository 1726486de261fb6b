from privbench.defenses.release.release import CentralGaussian, Release, Unchanged

__all__ = ["CentralGaussian", "Release", "Unchanged"]
