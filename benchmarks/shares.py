"""Whole numbers from shares: binary fractions must not add or take one (0.07 * 100 is 7.000000000000001)."""

import math

SLACK = 1e-9


def at_least(share: float, count: float) -> int:
    """``share * count``, rounded up."""
    return math.ceil(share * count - SLACK)


def at_most(share: float, count: float) -> int:
    """``share * count``, rounded down."""
    return math.floor(share * count + SLACK)
