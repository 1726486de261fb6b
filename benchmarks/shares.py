"""Whole numbers from shares: binary fractions must not add or take one (0.07 * 100 is 7.000000000000001)."""

import math

SLACK = 1e-9


def at_least(share: float, count: float) -> int:
    """``share * count``, rounded up."""
    return math.ceil(share * count - SLACK)


def at_most(share: float, count: float) -> int:
    """``share * count``, rounded down."""
    return math.floor(share * count + SLACK)


def cohort_size(share: float, clients: int) -> int:
    """Clients in a cohort of a fixed size: the nearest whole number to their share, at least one."""
    return max(1, round(share * clients))
