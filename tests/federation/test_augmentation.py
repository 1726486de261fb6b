"""Shifts, flips and views of records; averaging of models."""

from dataclasses import replace

import pytest
import torch

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.augmentation import Augmentation
from privbench.benchmarks.federation.server import ServerState
from privbench.benchmarks.federation.settings import FederationSettings
from privbench.defenses import Defense
from privbench.defenses.accounting import RecordLevel
from privbench.defenses.local import DPSGD


def test_views_follow_each_other_and_are_shifts():
    x = torch.arange(2 * 36.0).view(2, 1, 6, 6)
    made, y = Augmentation(multiplicity=4, shift=1).views(x, torch.tensor([3, 5]), torch.Generator().manual_seed(0))
    assert made.shape == (8, 1, 6, 6)
    assert y.tolist() == [3] * 4 + [5] * 4
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
    shifts = [padded[:, :, a : a + 6, b : b + 6] for a in range(3) for b in range(3)]
    for view in range(8):
        assert any(torch.equal(made[view], s[view // 4]) for s in shifts)
    assert len({tuple(v.flatten().tolist()) for v in made[:4]}) > 1


def test_half_of_the_views_are_mirrored():
    x = torch.rand(400, 1, 2, 2)
    made, _ = Augmentation(flip=True).views(x, torch.zeros(400), torch.Generator().manual_seed(0))
    mirrored = (made == x.flip(3)).flatten(1).all(1)
    assert ((made == x).flatten(1).all(1) | mirrored).all()
    assert 150 < int(mirrored.sum()) < 250


def test_idle_changes_nothing():
    assert Augmentation().idle
    assert not Augmentation(multiplicity=2).idle


@pytest.mark.parametrize(("field", "given"), [("multiplicity", 0), ("shift", -1)])
def test_bad_settings_are_named(field, given):
    with pytest.raises(ConfigError) as caught:
        Augmentation(**{field: given})
    assert caught.value.field == field


def test_tables_and_small_pictures_are_refused(task):
    with pytest.raises(ConfigError) as caught:
        Augmentation(shift=8).check(task.spec)
    assert caught.value.field == "federation.local.augmentation.shift"
    with pytest.raises(ConfigError, match="no pictures") as caught:
        Augmentation(flip=True).check(replace(task.spec, domain="table", shape=(5,)))
    assert caught.value.field == "federation.local.augmentation.flip"


def test_a_record_is_clipped_with_all_its_views(federate):
    """Views cost no privacy: with as many as one likes, a record moves the sum by the clip."""
    defense = Defense(local=DPSGD(), privacy=RecordLevel(delta=1e-4, clip=1e-4, noise_multiplier=0.0))
    done = federate(
        clients=1,
        rounds=1,
        defense=defense,
        local={"augmentation": Augmentation(5, shift=1), "steps": 1, "batch_size": 50, "learning_rate": 1.0},
    )
    moved = done.model - done.federation.start().model
    assert 0 < float(moved.norm()) <= 1e-4 * 1.6, "about 50 records, over the expected 50"


def test_workers_do_not_change_what_is_seen(federate):
    local = {"augmentation": Augmentation(2, shift=2, flip=True)}
    one, two = (federate(workers, local=local) for workers in (1, 2))
    assert torch.equal(one.model, two.model)
    assert not torch.equal(one.model, federate().model)


def test_the_average_follows_the_model():
    state = ServerState(0, torch.zeros(1))
    for number in range(1, 201):
        state.round, state.model = number, torch.tensor([float(number)])
        state.averaged(0.9)
    assert state.average is not None
    assert float(state.average[0]) == pytest.approx(200 - 9, abs=0.1), "a lag of decay / (1 - decay) rounds"
    none = ServerState(0, torch.zeros(1))
    none.averaged(0.0)
    assert none.average is None


def test_an_average_of_one_round_is_its_model(federate):
    done = federate(rounds=1, averaging=0.9)
    assert torch.equal(done.rounds[0].state.average, done.model)
    with pytest.raises(ConfigError, match="averaging"):
        FederationSettings(averaging=1.0)
