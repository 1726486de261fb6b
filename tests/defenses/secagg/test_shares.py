"""Shamir's secret sharing: any threshold of shares gives the secret back, fewer say nothing."""

import os

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from privbench.defenses.secagg.shares import P, combine, element, split

secrets = st.integers(0, P - 1)


def test_the_field_is_one():
    assert sympy.isprime(P)


@settings(max_examples=50, deadline=None)
@given(secret=secrets, holders=st.sets(st.integers(0, 500), min_size=1, max_size=12), data=st.data())
def test_any_threshold_of_shares_gives_the_secret_back(secret: int, holders: set[int], data: st.DataObject):
    threshold = data.draw(st.integers(1, len(holders)))
    shares = split(secret, threshold, holders, os.urandom)
    some = data.draw(st.permutations(sorted(holders)))[: data.draw(st.integers(threshold, len(holders)))]
    assert combine({h: shares[h] for h in some}) == secret


@settings(max_examples=50, deadline=None)
@given(secret=secrets, other=secrets, threshold=st.integers(2, 6))
def test_fewer_shares_fit_every_secret(secret: int, other: int, threshold: int):
    """One share more can be chosen so that any secret at all comes out: what is there says nothing of it."""
    shares = split(secret, threshold, range(threshold), os.urandom)
    known = {h: shares[h] for h in range(threshold - 1)}
    base = combine({**known, threshold: 0})
    slope = (combine({**known, threshold: 1}) - base) % P
    fitting = (other - base) * pow(slope, -1, P) % P
    assert combine({**known, threshold: fitting}) == other


@settings(max_examples=50, deadline=None)
@given(a=secrets, b=secrets, threshold=st.integers(1, 5))
def test_shares_of_a_sum_are_sums_of_shares(a: int, b: int, threshold: int):
    one, two = (split(s, threshold, range(5), os.urandom) for s in (a, b))
    assert combine({h: (one[h] + two[h]) % P for h in range(threshold)}) == (a + b) % P


def test_too_few_shares_give_something_else():
    shares = split(7, 3, range(5), os.urandom)
    assert combine({h: shares[h] for h in (0, 4)}) != 7


def test_elements_lie_in_the_field():
    drawn = iter([b"\xff" * 32, (P - 1).to_bytes(32, "little")])
    assert element(lambda size: next(drawn)) == P - 1, "2^255 - 1 is above P, and is drawn anew"
    with pytest.raises(StopIteration):
        next(drawn)
