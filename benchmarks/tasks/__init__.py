"""Data sets, their partitions into clients, and models."""

from privbench.benchmarks.tasks.classification import Classification
from privbench.benchmarks.tasks.contrastive import Contrastive
from privbench.benchmarks.tasks.task import Data, Features, Source, Spec, Split, Task
from privbench.benchmarks.tasks.triggers import Patch, Trigger

__all__ = ["Classification", "Contrastive", "Data", "Features", "Patch", "Source", "Spec", "Split", "Task", "Trigger"]
