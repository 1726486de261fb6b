"""The patch is painted in raw pixels."""

from dataclasses import replace
from math import inf, nan

import pytest
import torch

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.tasks.task import Spec
from privbench.benchmarks.tasks.triggers import Patch

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
    "settings", [{"size": 0}, {"target": -1}, {"place": (-1, 0)}, {"colour": nan}, {"colour": (0.5, inf)}]
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        Patch(**settings)
