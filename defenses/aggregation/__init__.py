from privbench.defenses.aggregation.mean import ClippedMean, Mean
from privbench.defenses.aggregation.median import CoordinateMedian
from privbench.defenses.aggregation.rule import Diverged, Rule

__all__ = ["ClippedMean", "CoordinateMedian", "Diverged", "Mean", "Rule"]
