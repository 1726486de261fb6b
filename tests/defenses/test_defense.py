from typing import Any

import pytest
import torch

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.update import Layout
from privbench.benchmarks.tasks.models.architecture import make
from privbench.benchmarks.tasks.models.dense import MLP
from privbench.defenses import Defense
from privbench.defenses.accounting import ClientLevel, RecordLevel
from privbench.defenses.aggregation import ClippedMean, CoordinateMedian, Mean
from privbench.defenses.channel import Plaintext
from privbench.defenses.local import DPSGD
from privbench.defenses.release import CentralGaussian, Unchanged

CLIENT = ClientLevel(delta=1e-3, clip=1.0, noise_multiplier=1.0)
RECORD = RecordLevel(delta=1e-5, clip=1.0, noise_multiplier=1.0)


class SumOnly(Plaintext):
    """A channel that shows the sum alone."""

    plaintext = False
    sums_only = True


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"aggregation": CoordinateMedian()},
        {"aggregation": ClippedMean(1.0)},
        {"local": DPSGD(), "privacy": RECORD},
        {"local": DPSGD(), "privacy": RECORD, "aggregation": CoordinateMedian()},
        {"local": DPSGD(), "privacy": RECORD, "aggregation": ClippedMean(2.0)},
        {"aggregation": ClippedMean(), "release": CentralGaussian(), "privacy": CLIENT},
        {"channel": SumOnly(), "aggregation": Mean()},
    ],
)
def test_combinations_that_work(fields):
    Defense(**fields)


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"release": CentralGaussian()}, "privacy", "ClientLevel"),
        ({"release": CentralGaussian(), "local": DPSGD(), "privacy": RECORD}, "privacy", "ClientLevel"),
        ({"aggregation": ClippedMean(), "privacy": CLIENT}, "release", "CentralGaussian"),
        ({"local": DPSGD()}, "privacy", "RecordLevel"),
        ({"privacy": RECORD}, "local", "DPSGD"),
        ({"release": CentralGaussian(), "privacy": CLIENT, "local": DPSGD()}, "privacy", "RecordLevel"),
        ({"release": CentralGaussian(), "privacy": CLIENT}, "aggregation", "ClippedMean"),
        (
            {"release": CentralGaussian(), "privacy": CLIENT, "aggregation": CoordinateMedian()},
            "aggregation",
            "ClippedMean",
        ),
        ({"channel": SumOnly(), "aggregation": CoordinateMedian()}, "aggregation", "the sum alone"),
        ({"channel": SumOnly(), "aggregation": ClippedMean(1.0)}, "aggregation", "have clients clip"),
        ({"aggregation": ClippedMean()}, "aggregation.clip", "positive"),
        (
            {"release": CentralGaussian(), "privacy": CLIENT, "aggregation": ClippedMean(1.0)},
            "aggregation.clip",
            "null",
        ),
        ({"local": DPSGD(), "privacy": RECORD, "aggregation": ClippedMean()}, "aggregation.clip", "positive"),
    ],
)
def test_combinations_that_contradict_themselves_are_refused_by_name(fields, field, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Defense(**fields)
    assert caught.value.field == field


def test_a_norm_bound_works_beside_record_level_privacy(federate):
    """A rule's own clip is not the record's: the plan's clip must not replace it."""
    defense = Defense(local=DPSGD(), privacy=RECORD, aggregation=ClippedMean(0.01))
    done = federate(defense=defense, rounds=1, clients=4)
    moved = float((done.model - done.federation.start().model).norm())
    assert moved <= 0.01


@pytest.mark.parametrize("source", ["seeded", "system"])
def test_central_noise_is_z_c_over_k(federate, task, source):
    model = make(MLP(hidden=(64,)), task.spec, 0)
    privacy = ClientLevel(delta=1e-3, clip=0.5, noise_multiplier=2.0, noise_source=source)
    private = Defense(aggregation=ClippedMean(), release=CentralGaussian(), privacy=privacy)
    silent = ClientLevel(delta=1e-3, clip=0.5, noise_multiplier=0.0)
    clipped = Defense(aggregation=ClippedMean(), release=CentralGaussian(), privacy=silent)
    options = {"model": model, "clients": 10, "participation": 0.4, "rounds": 1}
    a, b = (federate(defense=d, **options) for d in (private, clipped))
    noise = a.model - b.model
    assert float(noise.std()) == pytest.approx(2.0 * 0.5 / 4, rel=0.05)
    assert abs(float(noise.mean())) < 5 * 0.25 / len(noise) ** 0.5
    again = federate(defense=private, **options).model
    assert torch.equal(again, a.model) == (source == "seeded")


def test_central_clipping_bounds_a_clients_influence(federate):
    """Model replacement under clipping without noise moves the model no further than C / K."""
    from privbench.attacks.poisoning import Backdoor

    silent = ClientLevel(delta=1e-3, clip=0.1, noise_multiplier=0.0)
    clipped = Defense(aggregation=ClippedMean(), release=CentralGaussian(), privacy=silent)
    honest = federate(defense=clipped, clients=5, rounds=1).model
    poisoned = federate(defense=clipped, clients=5, rounds=1, poisoner=Backdoor(boost=1e6)).model
    assert 0 < float((honest - poisoned).norm()) <= 2 * 0.1 / 5 * 1.0001


def test_stations_do_not_change_what_they_get(context, updates):
    noise = torch.Generator().manual_seed(0)
    (update,) = updates(torch.ones(1, 3))
    assert Unchanged().release(update, {}, context(3), noise) is update

    class Plan:
        clip, update_multiplier, noise_source = 1.0, 1.0, "seeded"

    plan: Any = Plan()
    released = CentralGaussian().release(update, {}, context(3, plan=plan), noise)
    assert not torch.equal(released.vector, update.vector)
    assert update.vector.tolist() == [1, 1, 1]
    assert isinstance(update.layout, Layout)
