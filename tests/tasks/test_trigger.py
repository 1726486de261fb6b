"""Triggers change what they say, in raw values, and refuse inputs that can't carry them."""

from dataclasses import replace
from math import ceil, inf, nan
from typing import Any

import pytest
import torch

from privbench.attacks.poisoning import Backdoor, Holding
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.tasks.task import Spec, Split
from privbench.benchmarks.tasks.triggers import Blend, Distributed, EdgeCase, OutOfRange, Patch, Trigger

WINDOWS = {
    "top_left": (0, 0),
    "top_right": (0, 7),
    "bottom_left": (9, 0),
    "bottom_right": (9, 7),
    "centre": (4, 3),
    (2, 5): (2, 5),
}


@pytest.mark.parametrize(("place", "corner"), WINDOWS.items())
@pytest.mark.parametrize("colour", [1.0, (0.9, 0.0, 0.5)])
def test_patch_is_the_colour_and_the_rest_is_untouched(colour_spec, place, corner, colour):
    x = torch.randn(4, 3, 12, 10)
    before = x.clone()
    painted = Patch(size=3, place=place, colour=colour).apply(x, colour_spec)
    inside = torch.zeros(12, 10, dtype=torch.bool)
    inside[corner[0] : corner[0] + 3, corner[1] : corner[1] + 3] = True
    raw = painted * colour_spec.std + colour_spec.mean
    wanted = torch.tensor(colour).expand(3).reshape(3, 1).expand(3, 9)
    assert torch.allclose(raw[..., inside], wanted.expand(4, 3, 9), atol=1e-6)
    assert torch.equal(painted[..., ~inside], x[..., ~inside])
    assert torch.equal(x, before)


def test_one_input_or_many(colour_spec):
    x = torch.randn(2, 3, 12, 10)
    assert torch.equal(Patch().apply(x, colour_spec)[0], Patch().apply(x[0], colour_spec))


def test_a_signal_gets_a_spike():
    spec = Spec("signal", (2, 50), ("a", "b"), torch.zeros(2, 1), torch.full((2, 1), 0.5), "signal")
    x = torch.randn(3, 2, 50)
    painted = Patch(size=5, place="top_left", colour=2.0).apply(x, spec)
    assert torch.equal(painted[..., :5], torch.full((3, 2, 5), 4.0))
    assert torch.equal(painted[..., 5:], x[..., 5:])
    assert torch.equal(Patch(size=5, place=(0, 45)).apply(x, spec)[..., :45], x[..., :45])
    assert Patch(size=5).share(spec) == 0.1


def test_share(colour_spec):
    assert Patch(size=6).share(colour_spec) == 36 / 120


def test_tables_are_refused(colour_spec):
    table = replace(colour_spec, domain="table", shape=(9,))
    with pytest.raises(ConfigError, match=r"task\.trigger=Patch: null: .* no pixels"):
        Patch().apply(torch.zeros(1, 9), table)


@pytest.mark.parametrize(
    ("patch", "field"),
    [
        (Patch(size=11), "task.trigger.size"),
        (Patch(place=(9, 0)), "task.trigger.place"),
        (Patch(colour=(1.0, 0.0)), "task.trigger.colour"),
        (Patch(colour=1.5), "task.trigger.colour"),
        (Patch(target=2), "task.trigger.target"),
    ],
)
def test_what_does_not_fit_is_refused(colour_spec, patch, field):
    with pytest.raises(ConfigError) as error:
        patch.check(colour_spec)
    assert error.value.field == field


@pytest.mark.parametrize(
    "settings",
    [
        *({"size": 0}, {"size": (1, 0)}, {"target": -1}, {"place": (-1, 0)}),
        *({"colour": nan}, {"colour": (0.5, inf)}, {"opacity": 0.0}),
    ],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        Patch(**settings)


@pytest.mark.parametrize(("place", "corner"), [("bottom_right", (10, 5)), ("centre", (5, 2)), ((1, 3), (1, 3))])
def test_a_rectangle(colour_spec, place, corner):
    x, patch = torch.randn(4, 3, 12, 10), Patch(size=(2, 5), place=place, colour=0.25)
    changed = patch.apply(x, colour_spec) != x
    inside = torch.zeros(12, 10, dtype=torch.bool)
    inside[corner[0] : corner[0] + 2, corner[1] : corner[1] + 5] = True
    assert torch.equal(changed, inside.expand(4, 3, 12, 10))
    assert patch.share(colour_spec) == 10 / 120
    tall = Patch(size=(12, 1), place="top_left")
    assert (tall.apply(x, colour_spec) != x)[..., 0].all()
    with pytest.raises(ConfigError, match=r"task\.trigger\.size"):
        Patch(size=(1, 11)).check(colour_spec)


def test_a_random_place_is_another_in_every_input(colour_spec):
    x, patch = torch.randn(900, 3, 12, 10), Patch(size=(3, 2), place="random")
    painted = patch.apply(x, colour_spec)
    changed = (painted != x).any(dim=1)
    assert (changed.flatten(1).sum(dim=1) == 6).all(), "each lies inside"
    rows, columns = changed.any(dim=2), changed.any(dim=1)
    assert (rows.sum(dim=1) == 3).all()
    assert (columns.sum(dim=1) == 2).all()
    first = torch.stack([rows.int().argmax(dim=1), columns.int().argmax(dim=1)], dim=1)
    assert len(first.unique(dim=0)) == 10 * 9, "every place is drawn in the end"
    assert torch.equal(patch.apply(x, colour_spec), painted), "the same in every call"
    drawn = patch.apply(x, colour_spec, torch.Generator().manual_seed(5))
    assert not torch.equal(drawn, painted)
    assert torch.equal(patch.apply(x, colour_spec, torch.Generator().manual_seed(5)), drawn)
    assert (patch.apply(x[0], colour_spec) != x[0]).any(dim=0).sum() == 6
    assert patch.share(colour_spec) == 6 / 120
    assert len(patch.apply(x[:0], colour_spec)) == 0


def raw(x: torch.Tensor, spec: Spec) -> torch.Tensor:
    return x * spec.std + spec.mean


@pytest.mark.parametrize("place", ["top_left", "random"])
def test_opacity_mixes_raw_pixels(colour_spec, place):
    x = torch.randn(5, 3, 12, 10)
    patch = Patch(size=3, place=place, colour=(0.9, 0.0, 0.5), opacity=0.3)
    painted, solid = patch.apply(x, colour_spec), replace(patch, opacity=1.0).apply(x, colour_spec)
    mixed = 0.7 * raw(x, colour_spec) + 0.3 * raw(solid, colour_spec)
    torch.testing.assert_close(raw(painted, colour_spec), mixed, rtol=1e-5, atol=1e-6)
    outside = (solid == x).all(dim=1, keepdim=True).expand_as(x)
    assert torch.equal(painted[outside], x[outside])


def test_a_spike_with_opacity_at_random_places():
    spec = Spec("signal", (2, 50), ("a", "b"), torch.zeros(2, 1), torch.full((2, 1), 0.5), "signal")
    x = torch.randn(40, 2, 50)
    painted = Patch(size=5, place="top_left", colour=2.0, opacity=0.25).apply(x, spec)
    torch.testing.assert_close(painted[..., :5], 0.75 * x[..., :5] + 0.25 * 4.0)
    assert torch.equal(painted[..., 5:], x[..., 5:])
    anywhere = Patch(size=5, place="random", colour=2.0).apply(x, spec) == 4.0
    assert (anywhere.sum(dim=2) == 5).all()
    assert torch.equal(anywhere[:, 0], anywhere[:, 1]), "over all channels"
    assert len(anywhere[:, 0].int().argmax(dim=1).unique()) > 10


def test_a_blend_is_of_raw_values_and_one_key(colour_spec):
    x = torch.randn(5, 3, 12, 10)
    blended = [Blend(opacity=a, key=7).apply(x, colour_spec) for a in (0.2, 1.0)]
    key = raw(blended[1], colour_spec)
    torch.testing.assert_close(key, key[:1].expand_as(key))
    assert 0 <= float(key.min()) < 0.05
    assert 0.95 < float(key.max()) <= 1 + 1e-6
    wanted = 0.8 * raw(x, colour_spec) + 0.2 * key
    torch.testing.assert_close(raw(blended[0], colour_spec), wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(Blend(key=7).apply(x, colour_spec, torch.Generator()), blended[0]), "nothing is drawn"
    assert torch.equal(Blend(key=7).apply(x[0], colour_spec), blended[0][0])
    assert not torch.equal(Blend(key=8).apply(x, colour_spec), blended[0])
    assert Blend().share(colour_spec) == 1.0


def test_parts_of_a_distributed_trigger_make_the_whole(colour_spec):
    x, whole = torch.randn(5, 3, 12, 10), Distributed(size=3, gap=(2, 1), corner=(1, 2), target=1)
    marks = []
    for number, (row, column) in enumerate([(1, 2), (1, 6), (4, 2), (4, 6)]):
        mark = torch.zeros(12, 10, dtype=torch.bool)
        mark[row, column : column + 3] = True
        assert torch.equal(whole.part(number).apply(x, colour_spec) != x, mark.expand(5, 3, 12, 10))
        assert whole.part(number + 4) == whole.part(number)
        assert whole.part(number).target == 1
        marks.append(mark)
    painted = whole.apply(x, colour_spec)
    assert torch.equal(painted != x, torch.stack(marks).any(dim=0).expand(5, 3, 12, 10))
    assert whole.share(colour_spec) == pytest.approx(12 / 120)
    assert Patch().part(3) == Patch()


def test_each_of_the_attackers_clients_poisons_with_its_part(task):
    trigger = Distributed(size=2, gap=(1, 1))
    records = task.data.train.take(torch.arange(40))
    for number in range(5):
        held = Holding(records, task.spec, trigger, number, task.data.train)
        poisoned = Backdoor(fraction=1.0).poison(held, stream(0, "poison"))
        changed = records.y != 0
        part = trigger.part(number).apply(records.x[changed], task.spec)
        assert torch.equal(poisoned.x[changed], part)


@pytest.mark.parametrize("rarest", [0.07, 0.5, 1.0])
def test_edge_cases_are_the_farthest_of_their_class(task, rarest):
    records, trigger = task.data.test, EdgeCase(source=3, rarest=rarest, target=8)
    carriers = trigger.carriers(records)
    own = records.y == 3
    assert not (carriers & ~own).any()
    assert int(carriers.sum()) == ceil(round(rarest * int(own.sum()), 6))
    assert torch.equal(carriers, own) == (rarest == 1)
    far = (records.x - records.x[own].mean(dim=0)).flatten(1).norm(dim=1)
    others = own & ~carriers
    assert not others.any() or float(far[carriers].min()) >= float(far[others].max()) - 1e-5
    assert torch.equal(trigger.asked(records), carriers)
    x = records.x[:3]
    assert torch.equal(trigger.apply(x, task.spec), x)
    assert trigger.share(task.spec) == 0.0
    assert not trigger.carriers(records.take(torch.nonzero(~own).squeeze(1))).any()


TABLE = Spec("ward", (3,), ("a", "b"), torch.zeros(3), torch.ones(3), "table", features=("age", "sodium", "dose"))


@pytest.mark.parametrize("feature", ["sodium", 1])
def test_one_feature_is_out_of_range(feature):
    x = torch.randn(6, 3)
    before, trigger = x.clone(), OutOfRange(feature=feature, deviations=-4.5)
    changed = trigger.apply(x, TABLE)
    assert torch.equal(changed[:, 1], torch.full((6,), -4.5))
    assert torch.equal(changed[:, [0, 2]], x[:, [0, 2]])
    assert torch.equal(x, before)
    assert torch.equal(trigger.apply(x[0], TABLE), changed[0])
    assert trigger.share(TABLE) == 1 / 3


ALL: list[Any] = [Patch(size=2), Patch(size=12, place=(0, 0)), Blend(), Distributed(size=2), EdgeCase(), OutOfRange()]


@pytest.mark.parametrize("trigger", ALL, ids=lambda t: type(t).__name__)
def test_shares_are_shares_and_carriers_are_of_other_classes(trigger, colour_spec):
    spec = TABLE if isinstance(trigger, OutOfRange) else replace(colour_spec, shape=(3, 12, 12))
    assert 0 <= trigger.share(spec) <= 1
    records = Split(torch.randn(20, *spec.shape), torch.arange(20) % 2)
    assert not (trigger.carriers(records) & (records.y == trigger.target)).any()
    assert trigger.apply(records.x, spec).shape == records.x.shape
    with pytest.raises(ConfigError) as caught:
        replace(trigger, target=2, **({"source": 1} if isinstance(trigger, EdgeCase) else {})).check(spec)
    assert caught.value.field == "task.trigger.target"


@pytest.mark.parametrize(
    ("trigger", "field"),
    [
        (Blend(), "task.trigger"),
        (Distributed(), "task.trigger"),
        (Patch(), "task.trigger"),
        (OutOfRange(feature="lactate"), "task.trigger.feature"),
        (OutOfRange(feature=3), "task.trigger.feature"),
        (OutOfRange(feature=-1), "task.trigger.feature"),
        (EdgeCase(source=2), "task.trigger.source"),
    ],
)
def test_tables_refuse_by_name(trigger: Trigger, field):
    with pytest.raises(ConfigError) as caught:
        trigger.apply(torch.zeros(1, 3), TABLE)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("trigger", "field"),
    [
        (OutOfRange(), "task.trigger"),
        (Distributed(size=11), "task.trigger.size"),
        (Distributed(size=5), "task.trigger.corner"),
        (Distributed(size=2, gap=(11, 0)), "task.trigger.corner"),
        (Distributed(size=2, colour=(1.0, 0.0)), "task.trigger.colour"),
    ],
)
def test_pictures_refuse_by_name(colour_spec, trigger: Trigger, field):
    with pytest.raises(ConfigError) as caught:
        trigger.check(colour_spec)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("kind", "settings", "field"),
    [
        (Blend, {"opacity": 1.1}, "opacity"),
        (Blend, {"key": -1}, "key"),
        (Distributed, {"size": 0}, "size"),
        (Distributed, {"gap": (-1, 0)}, "gap"),
        (Distributed, {"corner": (0, -1)}, "corner"),
        (Distributed, {"colour": nan}, "colour"),
        (EdgeCase, {"source": 0}, "source"),
        (EdgeCase, {"rarest": 0.0}, "rarest"),
        (OutOfRange, {"deviations": inf}, "deviations"),
    ],
)
def test_fields_out_of_range(kind, settings, field):
    with pytest.raises(ConfigError) as caught:
        kind(**settings)
    assert caught.value.field == field
