"""From numbers to integers and back: the error is bounded, and no sum overflows."""

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privbench.defenses.secagg.encoding import Encoding
from privbench.defenses.secagg.parameters import limits


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weighted(encoding: Encoding, vectors: torch.Tensor, weights: list[int]) -> torch.Tensor:
    """The weighted mean that comes back, modulo 2^ring on its way."""
    total = np.zeros(vectors.shape[1], dtype=encoding.dtype)
    for n, (vector, weight) in enumerate(zip(vectors, weights, strict=True)):
        total += encoding.encode(vector, stream(n)) * encoding.dtype(weight)
    return encoding.decode(total) / sum(weights)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    bits=st.integers(4, 20),
    weights=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    limit=st.sampled_from([0.25, 1.0, 3.0]),
    rounding=st.sampled_from(["stochastic", "nearest"]),
)
def test_the_error_of_a_weighted_mean_is_bounded(
    seed: int, bits: int, weights: list[int], limit: float, rounding: Literal["stochastic", "nearest"]
):
    encoding = Encoding(limit, bits, 32, rounding)
    inside = limit - encoding.step
    vectors = (torch.rand(len(weights), 50, generator=stream(seed), dtype=torch.float64) * 2 - 1) * inside
    vectors[:, 0], vectors[:, 1] = inside, -inside
    vectors = vectors.float().clamp(-inside, inside)
    true = (vectors.double() * torch.tensor(weights).double()[:, None]).sum(0) / sum(weights)
    worst = float((weighted(encoding, vectors, weights) - true).abs().max())
    bound = encoding.step * (1 if rounding == "stochastic" else 0.5)
    assert worst <= bound * (1 + 1e-9)


def test_stochastic_rounding_is_right_on_average():
    encoding = Encoding(1.0, 8, 32, "stochastic")
    x = torch.full((200_000,), 0.3 * encoding.step)
    back = encoding.decode(encoding.encode(x, stream()))
    assert set(back.tolist()) == {0.0, encoding.step}
    # Six standard deviations of a mean of Bernoulli draws.
    assert abs(float(back.mean()) / encoding.step - 0.3) < 6 * (0.3 * 0.7 / len(x)) ** 0.5


@pytest.mark.parametrize("ring", [32, 64])
def test_at_capacity_nothing_overflows_and_beyond_it_does(ring: Literal[32, 64]):
    encoding = Encoding(2.0, 16, ring, "nearest")
    for sign in (1, -1):
        one = encoding.encode(torch.tensor([sign * 5.0]), stream())
        # One client of all the weight there is room for, at its limit.
        full = encoding.decode(one * encoding.dtype(encoding.capacity))
        assert float(full[0]) == pytest.approx(sign * (2.0 - encoding.step) * encoding.capacity)
        over = encoding.decode(one * encoding.dtype(encoding.capacity + 3))
        assert sign * float(over[0]) < 0


def test_limits_share_out_the_room_that_is_left():
    encoding = Encoding(1.0, 16, 32, "nearest")
    assert encoding.capacity == (2**31 - 1) // (2**15 - 1)
    most = limits(encoding, (10, 20, 30))
    assert most is not None
    assert sum(most) <= encoding.capacity < sum(most) + 3
    assert all(m >= w for m, w in zip(most, (10, 20, 30), strict=True))
    assert limits(encoding, (encoding.capacity, 1)) is None
    assert limits(encoding, (encoding.capacity,)) == (encoding.capacity,)


def test_what_is_noised_is_not_clipped():
    """Beyond the range it wraps around the ring, and comes back as long as the sum of the others brings it back."""
    encoding = Encoding(1.0, 24, 32, "nearest")
    far, back = (encoding.encode(torch.tensor([v]), stream(), clips=False) for v in (300.0, -299.5))
    assert float(encoding.decode(far)[0]) != 300.0
    assert float(encoding.decode(far + back)[0]) == 0.5
    assert float(encoding.decode(encoding.encode(torch.tensor([300.0]), stream()))[0]) == 1.0 - encoding.step
