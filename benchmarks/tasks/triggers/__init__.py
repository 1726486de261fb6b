"""What a backdoor is triggered by."""

from privbench.benchmarks.tasks.triggers.blend import Blend
from privbench.benchmarks.tasks.triggers.distributed import Distributed
from privbench.benchmarks.tasks.triggers.edge_case import EdgeCase
from privbench.benchmarks.tasks.triggers.instance import Instance
from privbench.benchmarks.tasks.triggers.out_of_range import OutOfRange
from privbench.benchmarks.tasks.triggers.patch import Patch
from privbench.benchmarks.tasks.triggers.trigger import Trigger

__all__ = ["Blend", "Distributed", "EdgeCase", "Instance", "OutOfRange", "Patch", "Trigger"]
