"""Attack a gradient or an update that the user brings, of a model that the user brings."""

from privbench.benchmarks.inversion.diagnosis import Diagnosis, Fault
from privbench.benchmarks.inversion.invert import DumpDiffers, invert
from privbench.benchmarks.inversion.result import Inversion

__all__ = ["Diagnosis", "DumpDiffers", "Fault", "Inversion", "invert"]
