from privbench.defenses.aggregation.mean import AdaptiveClippedMean, ClippedMean, FixedDenominatorMean, Mean
from privbench.defenses.aggregation.median import CoordinateMedian
from privbench.defenses.aggregation.rule import Diverged, Rule, SumRule
from privbench.defenses.aggregation.sums import Sum

__all__ = [
    "AdaptiveClippedMean",
    "ClippedMean",
    "CoordinateMedian",
    "Diverged",
    "FixedDenominatorMean",
    "Mean",
    "Rule",
    "Sum",
    "SumRule",
]
