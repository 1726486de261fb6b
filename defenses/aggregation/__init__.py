from privbench.defenses.aggregation.cohort import CohortRule
from privbench.defenses.aggregation.coordinates import CoordinateMedian, TrimmedMean
from privbench.defenses.aggregation.dnc import DnC
from privbench.defenses.aggregation.geometric_median import CenteredClipping, GeometricMedian
from privbench.defenses.aggregation.krum import Bulyan, MultiKrum
from privbench.defenses.aggregation.mean import AdaptiveClippedMean, ClippedMean, FixedDenominatorMean, Mean
from privbench.defenses.aggregation.mixing import Bucketing, NearestNeighbourMixing
from privbench.defenses.aggregation.rule import Diverged, Rule, SumRule, empty
from privbench.defenses.aggregation.screen import Screen
from privbench.defenses.aggregation.similarity import FLAME, FLTrust, FoolsGold
from privbench.defenses.aggregation.sums import Sum

__all__ = [
    "FLAME",
    "AdaptiveClippedMean",
    "Bucketing",
    "Bulyan",
    "CenteredClipping",
    "ClippedMean",
    "CohortRule",
    "CoordinateMedian",
    "Diverged",
    "DnC",
    "FLTrust",
    "FixedDenominatorMean",
    "FoolsGold",
    "GeometricMedian",
    "Mean",
    "MultiKrum",
    "NearestNeighbourMixing",
    "Rule",
    "Screen",
    "Sum",
    "SumRule",
    "TrimmedMean",
    "empty",
]
