"""Data sets, their partitions into clients, and models."""

from privbench.benchmarks.tasks.classification import Classification
from privbench.benchmarks.tasks.task import Data, Features, Source, Spec, Split
from privbench.benchmarks.tasks.triggers import Patch, Trigger

__all__ = ["Classification", "Data", "Features", "Patch", "Source", "Spec", "Split", "Trigger"]
