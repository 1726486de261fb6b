"""Ranks do the work of the pool in the comparison, to the same model."""

import warnings

from privbench.benchmarks.speed import distributed, federation
from privbench.benchmarks.speed.work import Work

TINY = Work(clients=6, cohort=6, rounds=1)


def test_ranks_reach_the_accuracy_of_one_process() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        timing = distributed.ranks(2, chunk=2)(TINY)
    assert timing.seconds > 0
    assert timing.accuracy == federation.ours(1)(TINY).accuracy
