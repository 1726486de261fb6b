"""Shamir's secret sharing over GF(2^255 - 19): ``threshold`` of a secret's shares give it back, fewer say nothing."""

from collections.abc import Iterable, Mapping
from functools import lru_cache

from privbench.defenses.secagg.entropy import Entropy

P = 2**255 - 19
"""The field's order. An X25519 private key is 255 bits that matter, so that it is an element."""
SIZE = 32
"""Bytes of an element, little endian."""


def element(draw: Entropy) -> int:
    """Uniform in ``[0, P)``."""
    while True:
        value = int.from_bytes(draw(SIZE), "little") % 2**255
        if value < P:
            return value


def split(secret: int, threshold: int, holders: Iterable[int], draw: Entropy) -> dict[int, int]:
    """One share for each holder (Shamir 1979): a polynomial of degree ``threshold - 1`` with ``secret`` at 0.

    Args:
        secret: in ``[0, P)``.
        threshold: how many shares give it back, at least 1.
        holders: different numbers from 0; holder h has the value at ``h + 1``.
        draw: the coefficients'.
    """
    coefficients = [secret, *(element(draw) for _ in range(threshold - 1))]
    return {holder: _evaluate(coefficients, holder + 1) for holder in holders}


def combine(shares: Mapping[int, int]) -> int:
    """The secret from as many shares as its threshold, by holder. Fewer, or wrong ones, give another value."""
    holders = tuple(sorted(shares))
    weights = _at_zero(holders)
    return sum(w * shares[h] for w, h in zip(weights, holders, strict=True)) % P


def _evaluate(coefficients: list[int], x: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % P
    return value


@lru_cache(maxsize=64)
def _at_zero(holders: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's weights at 0: the same for all secrets whose shares the same clients hold."""
    weights = []
    for here in holders:
        above = below = 1
        for other in holders:
            if other != here:
                above = above * (other + 1) % P
                below = below * (other - here) % P
        weights.append(above * pow(below, -1, P) % P)
    return tuple(weights)
