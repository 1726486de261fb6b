"""Min-Max, Min-Sum and the attack on the rule in force go as far as they say, and no farther."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from privbench.attacks.poisoning import Adaptive, Colluders, MinMax, MinSum, Seen
from privbench.attacks.poisoning.farthest import perturbation, search
from privbench.benchmarks.federation.update import Layout, Update
from privbench.defenses import Defense
from privbench.defenses.aggregation import (
    FLAME,
    Bulyan,
    CenteredClipping,
    CoordinateMedian,
    DnC,
    FLTrust,
    FoolsGold,
    GeometricMedian,
    Mean,
    MultiKrum,
    NearestNeighbourMixing,
    TrimmedMean,
)

DIRECTIONS = ("std", "mean", "sign")
directions = st.sampled_from(DIRECTIONS)


@st.composite
def cohorts(draw: st.DrawFn) -> Tensor:
    """Honest rows around a point, ``(n, d)``, of any scale; two of them may be equal."""
    n, d, seed = draw(st.integers(2, 12)), draw(st.integers(1, 30)), draw(st.integers(0, 10_000))
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    x = (x + draw(st.sampled_from([0.0, 3.0]))) * draw(st.sampled_from([1e-3, 1.0, 100.0]))
    if draw(st.booleans()):
        x[1] = x[0]
    return x


def farthest_of_two(x: Tensor, point: Tensor) -> tuple[float, float]:
    """Min-Max: the largest distance from ``point``, and the largest that is allowed."""
    x = x.double()
    pairs = (x[:, None] - x[None]).norm(dim=2)
    return float((x - point).norm(dim=1).max()), float(pairs.max())


def sums_of_squares(x: Tensor, point: Tensor) -> tuple[float, float]:
    """Min-Sum: the sum of squared distances from ``point``, and the largest that is allowed."""
    x = x.double()
    pairs = (x[:, None] - x[None]).square().sum(dim=2)
    return float((x - point).square().sum()), float(pairs.sum(dim=1).max())


CONSTRAINTS: dict[Any, Callable[[Tensor, Tensor], tuple[float, float]]] = {
    MinMax: farthest_of_two,
    MinSum: sums_of_squares,
}


def bisected(x: Tensor, step: Tensor, within: Callable[[Tensor, Tensor], tuple[float, float]]) -> float:
    """The papers' search: the largest gamma that the constraint allows."""

    def allowed(gamma: float) -> bool:
        found, most = within(x, x.mean(dim=0).double() + gamma * step.double())
        return found <= most

    low, high = 0.0, 1.0
    while allowed(high):
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if allowed(middle) else (low, middle)
    return low


@pytest.mark.parametrize("kind", CONSTRAINTS)
@settings(max_examples=60, deadline=None)
@given(x=cohorts(), direction=directions)
def test_the_constraint_holds_with_equality(kind, x, direction):
    step = perturbation(x, direction)
    gamma = kind().bound(x, step)
    if not (x != x[0]).any() or not step.any():
        assert gamma == 0 or float((gamma * step).abs().max()) < 1e-5 * float(x.abs().max())
        return
    found, most = CONSTRAINTS[kind](x, x.mean(dim=0).double() + gamma * step.double())
    assert gamma >= 0
    assert found == pytest.approx(most, rel=1e-6)
    assert gamma == pytest.approx(bisected(x, step, CONSTRAINTS[kind]), rel=1e-4, abs=1e-9)


def made(poisoner: Any, x: Tensor, own: int = 2, **more: Any) -> Tensor:
    layout = Layout(("w",), ((x.shape[1],),), 1)
    honest = tuple(Update(row.clone(), layout, "update", 1, client=c) for c, row in enumerate(x))
    colluders = tuple(Update(torch.zeros(x.shape[1]), layout, "update", 1, client=len(x) + c) for c in range(own))
    seen = Seen(0.2, 0.1, honest, Colluders.of(colluders), len(x) + own, **more)
    return poisoner.craft(colluders[0], seen, torch.Generator()).vector


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_what_is_sent_is_at_the_edge(kind, direction):
    x = torch.randn(9, 40, generator=torch.Generator().manual_seed(4)) + 1
    vector = made(kind(direction=direction), x)
    found, most = CONSTRAINTS[kind](x, vector.double())
    assert found == pytest.approx(most, rel=1e-4)
    away, mean = vector - x.mean(dim=0), x.mean(dim=0)
    p = {"std": -x.std(dim=0), "mean": -mean / mean.norm(), "sign": -mean.sign()}[direction]
    torch.testing.assert_close(away / away.norm(), p / p.norm(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_of_equal_updates_it_is_their_mean(kind, direction):
    for x in (torch.full((5, 4), 0.5), torch.zeros(3, 4)):
        assert kind().bound(x, perturbation(x, direction)) == 0
        assert torch.equal(made(kind(direction=direction), x), x[0])


# The rule in force


def test_where_its_own_are_too_few_for_the_rule_it_sends_min_maxs(federate):
    """Bulyan decides on 11 updates; the attacker knows two, and makes two."""
    options = {"clients": 11, "rounds": 1, "defense": Defense(aggregation=Bulyan(f=2)), "watched": frozenset({10})}
    adaptive, least = (
        federate(**options, poisoner=kind(clients=2, omniscient=False)).rounds[0].views["server_operator"].rounds[0]
        for kind in (Adaptive, MinMax)
    )
    assert torch.equal(adaptive.updates[10].vector, least.updates[10].vector)


@pytest.mark.parametrize("peak", [0.004, 0.3, 1.0, 7.7, 60.0, 64.0])
def test_the_search_finds_a_maximum(peak):
    found = search(lambda g: -abs(g - peak), 64.0, Adaptive.STEPS)
    assert found == pytest.approx(peak, rel=0.02, abs=0.01)
    assert 0 < found <= 64.0


def test_a_harm_that_only_grows_ends_at_the_longest():
    assert search(lambda g: g, 5.0, 12) == 5.0
    assert 0 < search(lambda g: -g, 5.0, 12) < 0.001
    assert search(lambda g: 1.0, 5.0, 12, (70.0, 0.0, 0.7, 2.0)) == 0.7, "nothing is known of it"
    # Passes up to 1.3, and nothing beyond.
    assert search(lambda g: g if g <= 1.3 else 0.0, 64.0, 12) == pytest.approx(1.3, rel=1e-2)


RULES: dict[str, Any] = {
    "median": CoordinateMedian(),
    "multi_krum": MultiKrum(f=2),
    "krum": MultiKrum(f=2, m=1),
    "trimmed": TrimmedMean(f=2),
    "mean": Mean(),
}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", RULES)
def test_it_does_at_least_the_harm_of_min_max(context, name, direction):
    """Along the same direction; for a mean it goes to the longest gamma."""
    for seed in range(8):
        x = torch.randn(9, 20, generator=torch.Generator().manual_seed(seed)) + 0.3
        told = context(20, invited=tuple(range(11)), expected=11.0)
        layout = told.layout

        def aggregate(updates: Any, told: Any = told) -> Tensor:
            return RULES[name].combine(updates, {}, told).vector

        def harm(vector: Tensor, x: Tensor = x, layout: Layout = layout, aggregate: Any = aggregate) -> float:
            sent = [*x, vector, vector]
            updates = [Update(row.clone(), layout, "update", 1, client=c) for c, row in enumerate(sent)]
            return float((aggregate(updates) - x.mean(dim=0)).norm())

        vector = made(Adaptive(direction=direction), x, aggregate=aggregate)
        assert harm(vector) >= 0.999 * harm(made(MinMax(direction=direction), x))
        if name == "mean":
            torch.testing.assert_close(vector, x.mean(dim=0) + 64.0 * perturbation(x, direction))


EVERY: dict[str, Any] = {
    **RULES,
    "bulyan": Bulyan(f=2),
    "geometric": GeometricMedian(),
    "clipping": CenteredClipping(1.0),
    "dnc": DnC(f=2),
    "nnm": TrimmedMean(f=2, mixing=NearestNeighbourMixing(2)),
    "foolsgold": FoolsGold(),
    "flame": FLAME(noise=0.0),
    "fltrust": FLTrust(),
}


@pytest.mark.parametrize("omniscient", [True, False], ids=["knowing", "blind"])
@pytest.mark.parametrize("name", EVERY)
def test_it_runs_any_rule(federate, name, omniscient):
    poisoner = Adaptive(clients=2, omniscient=omniscient)
    done = federate(
        clients=11, rounds=1, local={"steps": 1}, defense=Defense(aggregation=EVERY[name]), poisoner=poisoner
    )
    assert bool(torch.isfinite(done.model).all())
