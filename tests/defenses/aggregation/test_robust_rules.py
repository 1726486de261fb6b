"""What every robust rule promises: whatever the order, place and scale, and whatever a few clients send."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.server import RoundContext
from privbench.benchmarks.federation.update import Layout, Update
from privbench.defenses.accounting import Facts
from privbench.defenses.aggregation import (
    FLAME,
    Bucketing,
    Bulyan,
    CenteredClipping,
    CoordinateMedian,
    Diverged,
    DnC,
    FLTrust,
    FoolsGold,
    GeometricMedian,
    MultiKrum,
    NearestNeighbourMixing,
    TrimmedMean,
)

NNM = NearestNeighbourMixing(2)
RULES: dict[str, Any] = {
    "median": CoordinateMedian(),
    "trimmed": TrimmedMean(f=2),
    "krum": MultiKrum(f=2, m=1),
    "multi_krum": MultiKrum(f=2),
    "bulyan": Bulyan(f=2),
    "geometric": GeometricMedian(),
    "dnc": DnC(f=2, factor=1.5),
    "nnm_trimmed": TrimmedMean(f=2, mixing=NNM),
    "nnm_multi_krum": MultiKrum(f=2, mixing=NNM),
    "nnm_median": CoordinateMedian(mixing=NNM),
    "nnm_geometric": GeometricMedian(mixing=NNM),
}
# Rules with a place or a scale of their own.
OTHERS: dict[str, Any] = {
    "nnm_bulyan": Bulyan(f=2, mixing=NNM),  # mixtures that are equal but for rounding, in any order
    "clipping": CenteredClipping(2.0, 3),
    "nnm_clipping": CenteredClipping(2.0, 3, mixing=NNM),
    "bucketing": GeometricMedian(mixing=Bucketing(2)),
    "foolsgold": FoolsGold(),
    "flame": FLAME(noise=0.0),
    "fltrust": FLTrust(),
}
EVERY = {**RULES, **OTHERS}
seeds = st.integers(0, 10_000)


def context(size: int, weighting: str = "equal", invited: tuple[int, ...] = ()) -> RoundContext:
    layout = Layout(("w",), ((size,),), 1)
    return RoundContext(0, 1, invited, 1.0, weighting, layout, "update", 0.1, None, frozenset())


def combine(rule: Any, x: Tensor, state: dict[str, Any] | None = None, clients: Any = None, **more: Any) -> Update:
    names = range(len(x)) if clients is None else clients
    round_ = context(x.shape[1], **more)
    before = x.clone()
    updates = [Update(row, round_.layout, "update", 1, client=c) for row, c in zip(x, names, strict=True)]
    found = rule.combine(iter(updates), {} if state is None else state, round_)
    assert torch.equal(before.nan_to_num(), x.nan_to_num()), "the input is not changed"
    return found


def honest(seed: int, n: int = 11, d: int = 30) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * 0.3 + 1


@pytest.mark.parametrize("name", [n for n in EVERY if n not in ("bucketing", "fltrust", "nnm_bulyan")])
@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_the_order_of_clients_changes_nothing(name, seed):
    x = honest(seed)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed + 1))
    there, here = combine(EVERY[name], x[order], clients=order.tolist()), combine(EVERY[name], x)
    torch.testing.assert_close(there.vector, here.vector, rtol=1e-4, atol=1e-4)
    if "kept" in here.extras:
        assert sorted(there.extras["kept"].tolist()) == sorted(here.extras["kept"].tolist())


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=15, deadline=None)
@given(seed=seeds, shift=st.floats(-50, 50), scale=st.sampled_from([0.01, 0.5, 3.0, 100.0]))
def test_place_and_scale_go_through(name, seed, shift, scale):
    x = honest(seed)
    moved = combine(RULES[name], x * scale + shift).vector
    torch.testing.assert_close(
        moved, combine(RULES[name], x).vector * scale + shift, rtol=1e-3, atol=1e-3 * (scale + abs(shift) / 10)
    )


@pytest.mark.parametrize("name", [n for n in EVERY if n not in ("foolsgold", "bucketing")])
@settings(max_examples=15, deadline=None)
@given(seed=seeds, where=st.sampled_from([30.0, -1e3, 1e6, 1e30]), together=st.booleans())
def test_two_of_eleven_dont_get_far(name, seed, where, together):
    """Up to f clients, whatever they send, leave the result among the honest updates."""
    x = honest(seed)
    direction = torch.randn(2, x.shape[1], generator=torch.Generator().manual_seed(seed))
    # DnC looks along one direction, that of attackers who collude.
    x[-2:] = (direction[:1] if together or name == "dnc" else direction) * where
    mean = x[:-2].mean(dim=0)
    spread = float((x[:-2] - mean).norm(dim=1).max())
    # Centered clipping starts at zero, and goes at most its radius in each iteration.
    allowed = spread + 1e-3 if "clipping" not in name else float(mean.norm())
    found = combine(EVERY[name], x)
    assert float((found.vector - mean).norm()) <= allowed
    if name in ("krum", "multi_krum", "dnc", "flame"):
        assert not {9, 10} & set(found.extras["kept"].tolist())


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, 3e38])
def test_the_screen_names_whom_it_drops(name, bad):
    x = honest(0)
    x[4, 3] = bad
    found = combine(EVERY[name], x, clients=[10 * c for c in range(11)] if name != "fltrust" else None)
    assert found.extras["screened"].tolist() == [4 if name == "fltrust" else 40]
    assert bool(found.vector.isfinite().all())
    if "kept" in found.extras:
        assert not {4, 40} & {c for c in found.extras["kept"].tolist() if c != 40 or name != "fltrust"}
    with pytest.raises(Diverged, match="round 1"):
        combine(EVERY[name], torch.full((3, 2), torch.nan))


@pytest.mark.parametrize("name", EVERY)
def test_an_empty_cohort_gives_zero(name):
    assert combine(EVERY[name], torch.zeros(0, 3)).vector.tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", EVERY)
def test_equal_updates_are_the_result(name):
    found = combine(EVERY[name], torch.full((11, 4), 0.25)).vector
    if name == "foolsgold":
        assert found.tolist() == [0] * 4, "clients that are all alike are all sybils"
    else:
        torch.testing.assert_close(found, torch.full((4,), 0.25))


@pytest.mark.parametrize(
    ("rule", "least"),
    [
        (TrimmedMean(f=3), 7),
        (MultiKrum(f=3), 9),
        (MultiKrum(m=8), 8),
        (Bulyan(f=2), 11),
        (DnC(f=3), 7),
        (DnC(f=2, factor=4.0), 9),
        (DnC(f=2, iterations=4), 9),
    ],
    ids=lambda v: type(v).__name__ if not isinstance(v, int) else str(v),
)
def test_too_small_a_cohort(rule, least):
    facts = Facts(least - 1, 1, 1.0, "fixed", (1,) * (least - 1), (1,) * (least - 1), (1,) * (least - 1))
    # The setting that asks for so many is named: m, where that and not f is the cause.
    causes = {MultiKrum(m=8): "m", DnC(f=2, factor=4.0): "factor", DnC(f=2, iterations=4): "iterations"}
    cause = causes.get(rule, "f")
    said = rf"defense.aggregation.{cause}={getattr(rule, cause)}: for \w+ with at least {least}"
    with pytest.raises(ConfigError, match=said):
        rule.check(facts)
    small = combine(rule, honest(0, least - 1))
    assert small.vector.abs().sum() == 0
    assert float(small.extras["cohort_too_small"]) == 1
    assert "cohort_too_small" not in combine(rule, honest(0, least)).extras
    # Who was screened was an attacker of those that the rule was told of.
    x = honest(0, least)
    x[0] = torch.nan
    assert combine(rule, x).vector.abs().sum() > 0


def test_buckets_count_for_the_least_cohort():
    facts = Facts(20, 1, 1.0, "fixed", (1,) * 20, (1,) * 20, (1,) * 20)
    MultiKrum(f=3, mixing=Bucketing(2)).check(facts)
    with pytest.raises(ConfigError, match="with at least 11: 20 of 20 clients are expected in a round, mixed to 10"):
        MultiKrum(f=4, mixing=Bucketing(2)).check(facts)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: MultiKrum(f=-1), "f"),
        (lambda: MultiKrum(m=0), "m"),
        (lambda: Bulyan(f=-1), "f"),
        (lambda: TrimmedMean(f=-1), "f"),
        (lambda: DnC(factor=0.0), "factor"),
        (lambda: DnC(coordinates=0), "coordinates"),
        (lambda: CenteredClipping(radius=0.0), "radius"),
        (lambda: CenteredClipping(iterations=0), "iterations"),
        (lambda: FLTrust(root=-1), "root"),
        (lambda: FLAME(noise=-1.0), "noise"),
        (lambda: FoolsGold(confidence=0.0), "confidence"),
        (lambda: FoolsGold(mixing=Bucketing(2)), "mixing"),
        (lambda: Bucketing(0), "size"),
        (lambda: NearestNeighbourMixing(-1), "f"),
    ],
)
def test_settings_are_checked_by_name(make, field):
    with pytest.raises(ConfigError, match=f"^{field}="):
        make()


def test_the_roots_rounds():
    each = (1,) * 5
    FLTrust().check(Facts(5, 1, 1.0, "fixed", each, each, each))
    with pytest.raises(ConfigError, match=r"participation=0.5: 1: FLTrust's root"):
        FLTrust().check(Facts(5, 1, 0.5, "fixed", each, each, each))
    with pytest.raises(ConfigError, match=r"dropout=0.1: 0"):
        FLTrust().check(Facts(5, 1, 1.0, "fixed", each, each, each, dropout=0.1))
    with pytest.raises(ConfigError, match=r"root=7"):
        FLTrust(root=7).check(Facts(5, 1, 1.0, "fixed", each, each, each))
    without = combine(FLTrust(root=3), honest(0, 3))
    assert without.vector.abs().sum() == 0
    assert without.extras["kept"].tolist() == []


def test_fltrust_by_hand():
    x = torch.tensor([[2.0, 0.0], [1.0, 1.0], [-4.0, 0.1], [8.0, 0.0]])
    found = combine(FLTrust(), x)
    cosine = 1 / math.sqrt(2)
    expected = (cosine * 2 * torch.tensor([cosine, cosine]) + torch.tensor([2.0, 0.0])) / (1 + cosine)
    torch.testing.assert_close(found.vector, expected)
    assert found.extras["kept"].tolist() == [0, 1, 3]


def test_foolsgold_drops_sybils_over_rounds_and_keeps_their_history():
    state: dict[str, Any] = {}
    rule, noise = FoolsGold(), torch.Generator().manual_seed(0)
    found = None
    for _ in range(3):
        x = torch.randn(8, 50, generator=noise)
        x[6:] = 1 + 0.01 * torch.randn(2, 50, generator=noise)
        found = combine(rule, x, state)
    assert found is not None
    assert found.extras["kept"].tolist() == [0, 1, 2, 3, 4, 5]
    assert state["clients"] == list(range(8))
    combine(rule, torch.randn(2, 50), state, clients=[3, 11])
    assert state["clients"] == [*range(8), 11]
    assert state["sums"].shape == (9, 50)


def test_the_geometric_median_is_weighted_as_the_federation_says():
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    round_ = context(2, weighting="records")
    updates = [Update(row, round_.layout, "update", n) for row, n in zip(x, [10, 1, 1], strict=True)]
    heavy = GeometricMedian().combine(updates, {}, round_).vector
    assert heavy.tolist() == pytest.approx([0, 0], abs=1e-4)
    assert combine(GeometricMedian(), x).vector.tolist() == pytest.approx([0.2113, 0.2113], abs=1e-3)


def test_centered_clipping_goes_on_from_the_last_round():
    rule, state = CenteredClipping(radius=1.0), {}
    x = torch.full((5, 3), 10.0)
    first = combine(rule, x, state).vector
    assert float(first.norm()) == pytest.approx(1)
    assert float(combine(rule, x, state).vector.norm()) == pytest.approx(2)


@pytest.mark.parametrize("name", EVERY)
def test_a_matrix_filled_as_updates_come_in(name):
    x = honest(3)
    plain = combine(EVERY[name], x).vector
    for invited in (tuple(range(11)), tuple(range(20)), (0, 1)):
        assert torch.equal(combine(EVERY[name], x, invited=invited).vector, plain)


def test_median_of_many_rows_takes_another_way_to_the_same():
    for n in (2, 31, 32, 33, 64):
        x = honest(n, n, 200)
        np.testing.assert_allclose(combine(CoordinateMedian(), x).vector, np.median(x.numpy(), axis=0), rtol=1e-6)
