"""Ratios of arms, and whether their intervals hold what they promise."""

import numpy as np
import pytest

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.overhead.calibration import Coverage, Noise, coverage, draw, simulate
from privbench.benchmarks.overhead.ratio import LEAST_BOOTS, percentile, ratio, studentised


def test_a_ratio_is_of_geometric_means_of_medians():
    base = {"a": [100.0, 101, 900], "b": [200.0, 199, 201], "c": [101.0]}
    other = {"d": [4 * 101.0], "e": [4 * 200.0], "f": [4 * 101.0]}
    found = ratio(base, other)
    assert found.value == pytest.approx(4)
    assert found.base == pytest.approx((101 * 200 * 101) ** (1 / 3))
    assert (found.boots, found.repeats) == ((3, 3), (7, 3))
    assert found.low is not None
    assert found.high is not None
    assert found.low < 4 < found.high


def test_exchanging_the_arms_inverts_the_ratio():
    rng = np.random.default_rng(3)
    a, b = (simulate(8, 10, slow, Noise(), rng) for slow in (1, 1.3))
    there, back = ratio(a, b, draws=20000), ratio(b, a, draws=20000)
    assert there.value * back.value == pytest.approx(1)
    assert there.low is not None
    assert back.high is not None
    assert there.low * back.high == pytest.approx(1, rel=0.01)


def test_repeats_of_a_boot_make_no_boots():
    """Ten thousand repeats in three boots tell less of an arm than what three boots differ by."""
    base = {str(n): [level] * 10000 for n, level in enumerate((1.0, 1.1, 1.2))}
    other = {str(n): [level] * 10000 for n, level in enumerate((1.05, 1.15, 1.25))}
    found = ratio(base, other)
    assert not found.found
    assert found.width is not None
    assert found.width > 0.1


@pytest.mark.parametrize("boots", range(1, LEAST_BOOTS))
def test_too_few_boots_have_a_ratio_and_no_interval(boots):
    rng = np.random.default_rng(0)
    few, many = simulate(boots, 10, 2, Noise(), rng), simulate(6, 10, 1, Noise(), rng)
    for found in (ratio(few, many), ratio(many, few)):
        assert (found.low, found.high, found.width, found.found) == (None, None, None, False)
        assert not found.holds(found.value)


def test_arms_without_any_spread_have_no_width():
    found = ratio({n: [2.0] for n in "abc"}, {n: [3.0] for n in "abc"})
    assert (found.low, found.high) == (pytest.approx(1.5), pytest.approx(1.5))


def test_intervals_agree_with_welch_where_boots_are_many():
    """Of many normal boots the studentised bootstrap is Welch's t-interval, and so is the percentile one."""
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(5)
    a, b = rng.normal(0, 1, 400), rng.normal(0.3, 2, 300)
    welch = ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    for interval in (studentised, percentile):
        low, high = interval(a, b, 0.95, 20000, np.random.default_rng(1))
        assert low == pytest.approx(welch.low, abs=0.02)
        assert high == pytest.approx(welch.high, abs=0.02)


def slack(share: float, pairs: int) -> float:
    """Three standard errors of a share that is measured in so many pairs."""
    return 3 * (share * (1 - share) / pairs) ** 0.5


@pytest.mark.parametrize("truth", [1.0, 1.05, 1.2, 2.0])
def test_a_known_slow_down_is_covered_and_found(truth):
    found = coverage(truth, boots=6, pairs=200)
    assert abs(found.covered - 0.95) <= slack(0.95, 200)
    if truth == 1:
        assert found.found <= 0.05 + slack(0.05, 200)
    else:
        assert found.found >= (0.75 if truth == 1.05 else 1)


def test_percentiles_would_cover_too_little_with_few_boots():
    """Were they enough, :func:`ratio` could be simpler."""
    found = coverage(1.2, boots=4, pairs=200)
    assert found.plain < 0.95 - slack(0.95, 200) <= found.covered


@pytest.mark.slow
@pytest.mark.parametrize("boots", [3, 4, 6, 8, 12, 20])
@pytest.mark.parametrize("truth", [1.0, 1.05, 1.2, 2.0])
def test_intervals_hold_their_level_with_any_number_of_boots(truth, boots):
    found = coverage(truth, boots, pairs=1000, seed=7)
    assert found.covered >= 0.95 - 0.02 - slack(0.95, 1000)
    if truth == 1:
        assert found.found <= 0.05 + 0.02 + slack(0.05, 1000)


def test_noisier_repeats_are_still_covered():
    found = coverage(1.2, boots=6, pairs=200, noise=Noise(boot=0.1, repeat=0.2, spikes=0.1, spike=10))
    assert found.covered >= 0.95 - slack(0.95, 200)


def test_noise_that_makes_no_sense_is_refused():
    for wrong in ({"boot": -0.1}, {"repeat": 1.0}, {"spikes": 0.6}, {"spike": 0.5}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Noise(**wrong)


def test_the_figure_is_drawn_twice_alike(tmp_path):
    found = [Coverage(t, n, 10, 0.9, 0.1, 0.8, 0.02) for t in (1.0, 1.2) for n in (3, 6)]
    first, second = (draw(found, 0.95, tmp_path / name) for name in ("a", "b"))
    assert [p.suffix for p in first] == [".png", ".pdf"]
    assert first[0].read_bytes() == second[0].read_bytes()
