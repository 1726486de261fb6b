"""Untargeted attacks against their papers, and ByzFL's of the same name; what they know, and what they leave alone."""

import math
from dataclasses import dataclass, replace
from typing import Any

import byzfl as _byzfl
import pytest
import torch
from torch import Tensor, nn

from privbench.attacks.poisoning import (
    Adaptive,
    ALittleIsEnough,
    Colluders,
    Holding,
    InnerProduct,
    LabelFlip,
    MinMax,
    MinSum,
    Seen,
    farthest,
)
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.client import Job, compute
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.trainer import Trainer
from privbench.benchmarks.federation.update import Update
from privbench.benchmarks.tasks.partition import Quantity
from privbench.defenses import Defense
from privbench.defenses.aggregation import CoordinateMedian, GeometricMedian, MultiKrum
from privbench.defenses.channel import SecAgg

byzfl: Any = _byzfl
GENERATOR = torch.Generator()
ROWS = torch.randn(7, 30, generator=torch.Generator().manual_seed(1)) + 0.5


def craft(poisoner: Any, honest: list[Update], colluders: list[Update], **more: Any) -> Tensor:
    seen = Seen(0.2, 0.1, tuple(honest), Colluders.of(colluders), len(honest) + len(colluders), **more)
    return poisoner.craft(colluders[0], seen, GENERATOR).vector


# What is sent


@pytest.mark.parametrize("size", [0.25, 1.5])
def test_parity(updates, size):
    honest, own = updates(ROWS), updates(torch.zeros(2, 30))
    before = [u.vector.clone() for u in honest]
    torch.testing.assert_close(craft(ALittleIsEnough(z=size), honest, own), byzfl.ALittleIsEnough(size)(ROWS.clone()))
    torch.testing.assert_close(
        craft(InnerProduct(epsilon=size), honest, own), byzfl.InnerProductManipulation(size)(ROWS.clone())
    )
    torch.testing.assert_close(craft(InnerProduct(epsilon=1.0), honest, own), byzfl.SignFlipping()(ROWS.clone()))
    assert all(torch.equal(u.vector, b) for u, b in zip(honest, before, strict=True)), "others' updates stay"
    assert not any(u.vector.any() for u in own), "so does what it trained"


def test_deviations_of_the_papers_example():
    """50 clients, 24 of the attacker's: s = 26 - 24 = 2, and 24 of the 26 honest ones must be nearer to the mean."""
    z = ALittleIsEnough().deviations(50, 24)
    assert z == pytest.approx(1.4261, abs=1e-4)
    assert (1 + math.erf(z / math.sqrt(2))) / 2 == pytest.approx(24 / 26, abs=1e-12)
    assert ALittleIsEnough(z=0.7).deviations(50, 24) == 0.7
    # n = 10, m = 2: s = 6 - 2 = 4, (10 - 2 - 4) / 8 is a half. n = 11, m = 2: s = 4 again, of 9.
    assert ALittleIsEnough().deviations(10, 2) == pytest.approx(0.0, abs=1e-12)
    assert ALittleIsEnough().deviations(11, 2) == pytest.approx(0.1397, abs=1e-4)
    for cohort, attackers in ((4, 3), (3, 3), (2, 1), (1, 1)):
        assert ALittleIsEnough().deviations(cohort, attackers) == 0.0


def test_alie_counts_the_cohort_and_its_own(updates):
    honest, own = updates(torch.randn(26, 5)), updates(torch.zeros(24, 5))
    known = torch.stack([u.vector for u in honest])
    torch.testing.assert_close(
        craft(ALittleIsEnough(), honest, own), known.mean(0) + 1.4260769 * known.std(0), rtol=1e-5, atol=1e-6
    )


def test_each_sends_the_same_and_claims_its_own(updates):
    own = updates(torch.randn(2, 30), [5, 9])
    seen = Seen(0.2, 0.1, tuple(updates(ROWS)), Colluders.of(own), 9)
    first, second = (MinMax().craft(u, seen, GENERATOR) for u in own)
    assert torch.equal(first.vector, second.vector)
    assert (first.records, second.records) == (5, 9)


@pytest.mark.parametrize("to", ["opposite", "next"])
@pytest.mark.parametrize("fraction", [0.07, 0.5, 1.0])
def test_labels_are_flipped(task, to, fraction):
    records = task.data.train.take(torch.arange(100))
    held = Holding(records, task.spec, None, 0, task.data.train)
    before = records.y.clone()
    flipped = LabelFlip(fraction=fraction, to=to).poison(held, stream(0, "poison"))
    assert torch.equal(records.y, before)
    assert torch.equal(flipped.x, records.x)
    moved = flipped.y != records.y
    # Ten classes: no label is its own opposite.
    assert int(moved.sum()) == round(100 * fraction)
    wrong = {c: 9 - c if to == "opposite" else (c + 1) % 10 for c in range(10)}
    assert flipped.y[moved].tolist() == [wrong[c] for c in records.y[moved].tolist()]
    again = LabelFlip(fraction=fraction, to=to).poison(held, stream(0, "poison"))
    assert torch.equal(again.y, flipped.y)


def test_flipped_labels_are_data_alone(federate):
    assert not LabelFlip().tampers
    assert LabelFlip().forges is None
    assert not LabelFlip.triggered
    one, two = (federate(w, clients=4, poisoner=LabelFlip(2)) for w in (1, 2))
    assert torch.equal(one.model, two.model)
    assert not torch.equal(one.model, federate(clients=4).model)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (ALittleIsEnough, "z", math.nan),
        (InnerProduct, "epsilon", 0.0),
        (InnerProduct, "epsilon", math.inf),
        (LabelFlip, "fraction", 0.0),
        (Adaptive, "longest", 0.0),
        (MinMax, "clients", 0),
    ],
)
def test_out_of_range(kind, field, value):
    with pytest.raises(ConfigError) as caught:
        kind(**{field: value})
    assert caught.value.field == field


# What it knows


def recording(kind: Any, log: dict[int, Seen], **fields: Any) -> Any:
    """An attack that keeps what its clients saw, by client."""

    class Recording(kind):
        def craft(self, update: Update, seen: Seen, generator: torch.Generator) -> Update:
            (own,) = (u.client for u in seen.colluders if torch.equal(u.vector, update.vector))
            assert own is not None
            log[own] = seen
            return super().craft(update, seen, generator)

    return Recording(clients=3, **fields)


@pytest.mark.parametrize("kind", [ALittleIsEnough, MinMax, Adaptive])
def test_omniscient_ones_see_the_honest_updates_as_sent(federate, kind):
    log: dict[int, Seen] = {}
    done = federate(clients=7, rounds=1, watched=frozenset(range(7)), poisoner=recording(kind, log))
    sent = done.rounds[0].views["server_operator"].rounds[0].updates
    assert sorted(log) == [4, 5, 6]
    for seen in log.values():
        assert [u.client for u in seen.honest] == [0, 1, 2, 3]
        assert all(torch.equal(u.vector, sent[u.client].vector) for u in seen.honest)
        assert seen.cohort == 7
        assert (seen.aggregate is None) == (kind is not Adaptive)
        assert seen.share == pytest.approx(sum(len(done.federation.shares[c]) for c in (4, 5, 6)) / 200)


@pytest.mark.parametrize(
    ("fields", "defense"),
    [({"omniscient": False}, Defense()), ({}, Defense(channel=SecAgg()))],
    ids=["not asked", "hidden by secure aggregation"],
)
@pytest.mark.parametrize("kind", [ALittleIsEnough, InnerProduct, MinMax, MinSum, Adaptive])
def test_without_honest_updates_it_counts_on_its_own(federate, kind, fields, defense):
    log: dict[int, Seen] = {}
    done = federate(clients=7, rounds=1, defense=defense, poisoner=recording(kind, log, **fields))
    side = done.federation.client_side()
    side.received.copy_(done.federation.start().model)
    side.poisoner = None
    trained = [compute(side, Job(c, 1, "update")).vector for c in (4, 5, 6)]
    for seen in log.values():
        assert seen.honest == ()
        assert [u.client for u in seen.colluders] == [4, 5, 6]
        assert all(torch.equal(u.vector, t) for u, t in zip(seen.colluders, trained, strict=True))


def test_who_does_not_collude_knows_its_own_update_alone(federate):
    log: dict[int, Seen] = {}
    options = {"clients": 7, "rounds": 1, "watched": frozenset(range(7))}
    poisoner = recording(InnerProduct, log, omniscient=False, collude=False, epsilon=2.0)
    done, honest = federate(**options, poisoner=poisoner), federate(**options)
    sent, usual = (d.rounds[0].views["server_operator"].rounds[0].updates for d in (done, honest))
    for client in (4, 5, 6):
        assert [u.client for u in log[client].colluders] == [client]
        torch.testing.assert_close(sent[client].vector, -2.0 * usual[client].vector)


@pytest.mark.parametrize("kind", [ALittleIsEnough, MinMax, MinSum, Adaptive])
def test_of_one_update_nothing_can_be_made(federate, kind):
    lonely = federate(clients=4, poisoner=kind(omniscient=False))
    assert torch.equal(lonely.model, federate(clients=4).model)


def batchnorm() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 10))


@pytest.mark.parametrize("kind", [ALittleIsEnough, InnerProduct, MinMax, MinSum, Adaptive])
def test_statistics_of_batchnorm_stay_those_of_its_training(federate, kind):
    options = {"clients": 5, "rounds": 1, "watched": frozenset(range(5)), "model": batchnorm()}
    done, honest = federate(**options, poisoner=kind(clients=2)), federate(**options)
    p = done.federation.layout.trainable
    sent, usual = (d.rounds[0].views["server_operator"].rounds[0].updates for d in (done, honest))
    for client in (3, 4):
        assert torch.equal(sent[client].vector[p:], usual[client].vector[p:])
        assert not torch.equal(sent[client].vector[:p], usual[client].vector[:p])
    assert torch.equal(sent[3].vector[:p], sent[4].vector[:p])


def test_honest_updates_are_not_touched(federate):
    options = {"clients": 5, "rounds": 1, "watched": frozenset(range(5))}
    honest = federate(**options)
    for kind in (ALittleIsEnough, InnerProduct, MinMax, MinSum, Adaptive):
        done = federate(**options, poisoner=kind(clients=2))
        sent, usual = (d.rounds[0].views["server_operator"].rounds[0].updates for d in (done, honest))
        assert all(torch.equal(sent[c].vector, usual[c].vector) for c in (0, 1, 2))


@pytest.mark.parametrize(
    "poisoner",
    [MinMax(2), Adaptive(2), Adaptive(2, omniscient=False), ALittleIsEnough(2)],
    ids=["min_max", "adaptive", "adaptive, blind", "alie"],
)
@pytest.mark.parametrize("rule", [CoordinateMedian(), MultiKrum(f=2)], ids=["median", "multi_krum"])
def test_the_model_does_not_depend_on_workers(federate, poisoner, rule):
    options = {"clients": 8, "participation": 0.9, "defense": Defense(aggregation=rule), "poisoner": poisoner}
    one, two = (federate(workers, **options) for workers in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.models, two.models, strict=True))
    assert not torch.equal(one.model, federate(**{**options, "poisoner": None}).model)


@pytest.mark.parametrize("kind", [ALittleIsEnough, InnerProduct, MinMax, MinSum, Adaptive])
def test_who_is_given_honest_updates_trains_nobody_twice(federate, monkeypatch, kind):
    """Each client trains for its own message, and no attacker a second time for another's."""
    trained: list[tuple[int, int]] = []
    usual = Trainer.train

    def counting(self, received, records, work, client, plan, seed, round, *more):
        trained.append((round, client))
        return usual(self, received, records, work, client, plan, seed, round, *more)

    monkeypatch.setattr(Trainer, "train", counting)
    federate(clients=7, rounds=2, poisoner=kind(clients=3), defense=Defense(aggregation=MultiKrum(f=2)))
    assert sorted(trained) == [(number, client) for number in (1, 2) for client in range(7)]
    trained.clear()
    federate(clients=7, rounds=1, poisoner=kind(clients=3, omniscient=False))
    assert {client for _, client in trained} == set(range(7))
    assert len(trained) > 7, "without them it needs what its clients trained"


@pytest.mark.parametrize("weighting", ["records", "equal"])
def test_what_the_adaptive_attack_sends_does_not_depend_on_how_its_clients_claims_are_known(
    federate, task, monkeypatch, weighting
):
    unequal = replace(task, partition=Quantity((10, 20, 30, 40, 50, 15, 35)))
    options = {"clients": 7, "rounds": 2, "weighting": weighting, "task": unequal}
    options |= {"poisoner": Adaptive(clients=3), "defense": Defense(aggregation=GeometricMedian())}
    quick = federate(**options)
    monkeypatch.setattr(farthest, "_senders", lambda seen, like: list(seen.colluders))
    assert torch.equal(quick.model, federate(**options).model)


@dataclass(frozen=True)
class Shifted:
    """Another model for each client."""

    def craft(self, model: Tensor, client: int) -> Tensor:
        return model + 0.01 * client


def test_colluders_train_on_the_model_that_each_of_them_got(federate):
    """An active operator may send every client another one."""
    log: dict[int, Seen] = {}
    poisoner = recording(MinMax, log, omniscient=False)
    done = federate(clients=7, rounds=1, poisoner=poisoner, distribution=Shifted())
    side, start = done.federation.client_side(), done.federation.start().model
    side.poisoner = None
    trained = [compute(side, Job(c, 1, "update", start + 0.01 * c)).vector for c in (4, 5, 6)]
    assert sorted(log) == [4, 5, 6]
    for seen in log.values():
        assert all(torch.equal(u.vector, t) for u, t in zip(seen.colluders, trained, strict=True))
