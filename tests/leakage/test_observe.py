from dataclasses import replace
from functools import partial

import pytest
import torch

from privbench.attacks.leakage.observe import observe
from privbench.benchmarks.federation.settings import LocalWork
from privbench.benchmarks.federation.view import RoundView
from privbench.defenses.local import DPSGD, Local


def test_single_step_update_is_the_gradient(scene):
    s = scene()
    gradient = s.gradient
    direct = s.observation(s.view())
    sent = s.update(-s.public.learning_rate * gradient, "update")
    derived = s.observation(s.view(participants=(0,), updates={0: sent}))
    assert direct.exact
    assert derived.exact
    assert (direct.source, derived.source) == ("update", "update")
    torch.testing.assert_close(derived.gradient, direct.gradient)


def test_as_many_records_are_sought_as_the_local_steps_draw(scene):
    """One step on a batch of 2 of the 4 enrolled records; how many DP-SGD expects to draw."""
    s = scene(records=4, visited=partial(Local().visited, work=LocalWork(batch_size=2, steps=1)))
    assert s.observation().records == 2
    mixed = replace(s.update(), records=8)
    seen = observe(s.view(participants=(0, 1), aggregate=mixed), 1, 0)
    assert seen is not None
    assert seen.records == 4
    work = LocalWork(batch_size=2, steps=3)
    assert [Local().visited(4, work), DPSGD().visited(4, work), DPSGD().visited(1000, work)] == [4, 4, 6]
    assert DPSGD().visited(40, LocalWork(batch_size=1, steps=1)) == 1


def test_several_steps_are_averaged_and_not_exact(scene):
    s = scene(local_steps=4)
    sent = s.update(torch.full_like(s.sent, -0.4), "update")
    seen = s.observation(s.view(updates={0: sent}))
    assert (seen.exact, seen.steps) == (False, 4)
    torch.testing.assert_close(seen.gradient, torch.ones_like(seen.gradient))


def test_buffers_are_left_out(scene):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(784), torch.nn.Linear(784, 10))
    s = scene(model, 4)
    assert s.public.layout.size > s.public.layout.trainable
    assert s.observation(s.view()).gradient.shape == (s.public.layout.trainable,)


def test_aggregate_of_many_is_a_mixture_of_one_exact(scene):
    s = scene()
    many = s.observation(s.view(participants=(0, 1), aggregate=replace(s.update(), records=2)))
    assert (many.source, many.exact, many.records) == ("aggregate", False, 2)
    assert s.observation(s.view(participants=(0,), aggregate=s.update())).exact
    assert not s.observation(s.view(participants=None, aggregate=s.update())).exact


def test_collusion_leaves_one_hidden_client(scene):
    s = scene()
    seen = s.observation(s.view(participants=(0, 1), updates={1: s.update()}, aggregate=s.update()))
    assert (seen.source, seen.exact) == ("aggregate", True)


def test_release_is_the_last_resort(scene):
    s = scene(kind="update")
    released = s.sent - 0.1 * s.gradient
    seen = s.observation(s.view("participant", participants=(0, 1), released=released))
    assert (seen.source, seen.exact) == ("release", False)
    torch.testing.assert_close(seen.gradient, s.gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "seen", [{"participants": (0,)}, {"participants": (1,), "released": torch.zeros(1)}, {"sent": None, "updates": {}}]
)
def test_nothing_to_see(scene, seen):
    assert observe(scene().view(**seen), 1, 0) is None


def test_other_round_and_unseen_client(scene):
    s = scene()
    assert observe(s.view(), 2, 0) is None
    assert observe(replace(s.view(), rounds=(RoundView(1),)), 1, 0) is None
