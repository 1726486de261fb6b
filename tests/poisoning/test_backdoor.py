import copy
import math
from dataclasses import replace

import pytest
import torch

from privbench.attacks.poisoning import Backdoor, Holding, Imitation, Poisoner, Seen
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.client import Job, take_turn
from privbench.benchmarks.federation.federation import Federation
from privbench.benchmarks.federation.processes import Serial
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.settings import FederationSettings, LocalWork
from privbench.benchmarks.measures.poisoning import triggered
from privbench.benchmarks.tasks.triggers import EdgeCase, Instance, Patch
from privbench.defenses import Defense
from privbench.defenses.accounting import RecordLevel
from privbench.defenses.local import DPSGD


@pytest.fixture(scope="module")
def records(task):
    return task.data.train.take(torch.arange(120))


def holding(records, task, trigger, number=0):
    return Holding(records, task.spec, trigger, number, task.data.train)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("target", [0, 7])
def test_data_are_poisoned_on_other_classes_only(task, records, fraction, target):
    trigger = Patch(size=2, target=target)
    x, y = records.x.clone(), records.y.clone()
    poisoned = Backdoor(fraction=fraction).poison(holding(records, task, trigger), stream(0, "poison"))
    changed = (poisoned.x != records.x).flatten(1).any(1)
    relabelled = poisoned.y != records.y
    others = records.y != target
    assert torch.equal(relabelled, changed | relabelled)
    assert not (relabelled & ~others).any()
    assert not (changed & ~others).any()
    assert int(relabelled.sum()) == math.ceil(round(fraction * int(others.sum()), 6))
    assert (poisoned.y[relabelled] == target).all()
    assert torch.equal(poisoned.x[relabelled], trigger.apply(records.x[relabelled], task.spec))
    assert torch.equal(poisoned.x[~relabelled], records.x[~relabelled])
    assert torch.equal(records.x, x), "the input stays as it is"
    assert torch.equal(records.y, y)
    again = Backdoor(fraction=fraction).poison(holding(records, task, trigger), stream(0, "poison"))
    assert torch.equal(again.y, poisoned.y)


def test_a_client_of_the_target_class_alone_has_nothing_to_poison(task, records):
    own = records.take(torch.nonzero(records.y == 0).squeeze(1))
    poisoned = Backdoor().poison(holding(own, task, Patch(size=2)), stream(0, "poison"))
    assert torch.equal(poisoned.x, own.x)


def test_a_trigger_is_needed(task, records):
    with pytest.raises(ConfigError, match="trigger"):
        Backdoor().poison(holding(records, task, None), stream(0, "poison"))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"clients": 0}, "clients"),
        ({"fraction": 0.0}, "fraction"),
        ({"fraction": 1.1}, "fraction"),
        ({"boost": 0.0}, "boost"),
        ({"boost": math.inf}, "boost"),
        ({"boost": -1}, "boost"),
        ({"boost": "other"}, "boost"),
        ({"records": -1}, "records"),
        ({"clean_label": True, "collected": True}, "collected"),
    ],
)
def test_out_of_range(fields, field):
    with pytest.raises(ConfigError) as caught:
        Backdoor(**fields)
    assert caught.value.field == field


def test_craft(updates):
    (update,) = updates(torch.tensor([[1.0, -2.0]]))
    generator = torch.Generator()
    assert Backdoor().craft(update, Seen(0.1, 0.1), generator) is update
    assert Backdoor(boost=3.0).craft(update, Seen(0.1, 0.1), generator).vector.tolist() == [3, -6]
    assert Backdoor(boost="replace").craft(update, Seen(0.25, 0.25), generator).vector.tolist() == [4, -8]
    assert update.vector.tolist() == [1, -2]
    assert not Poisoner().tampers
    assert not Backdoor().tampers
    assert Backdoor(boost=2.0).tampers
    assert Backdoor(boost="replace").tampers


@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_so_many_records_are_poisoned(task, records, count):
    able = int((records.y != 0).sum())
    poisoned = Backdoor(records=count).poison(holding(records, task, task.trigger), stream(0, "poison"))
    assert int((poisoned.y != records.y).sum()) == min(count, able)
    assert len(poisoned) == len(records)
    if count == 0:
        assert torch.equal(poisoned.x, records.x)


@pytest.mark.parametrize("fields", [{"fraction": 0.5}, {"fraction": 1.0}, {"records": 3}])
def test_clean_labels_stay_and_other_classes_too(task, records, fields):
    trigger = Patch(size=2, target=4, colour=0.6)
    own = records.y == 4
    poisoned = Backdoor(clean_label=True, **fields).poison(holding(records, task, trigger), stream(0, "poison"))
    assert torch.equal(poisoned.y, records.y)
    changed = (poisoned.x != records.x).flatten(1).any(1)
    assert not (changed & ~own).any()
    count = fields.get("records") or math.ceil(fields["fraction"] * int(own.sum()))
    assert int(changed.sum()) == count
    assert torch.equal(poisoned.x[changed], trigger.apply(records.x[changed], task.spec))


@pytest.mark.parametrize("trigger", [EdgeCase(source=1), Instance()], ids=["edge case", "instance"])
def test_clean_labels_need_a_trigger_that_changes_something(federate, task, trigger):
    with pytest.raises(ConfigError, match="changes no input") as caught:
        federate(task=replace(task, trigger=trigger), poisoner=Backdoor(clean_label=True))
    assert caught.value.field == "poisoning.clean_label"


@pytest.mark.parametrize("fields", [{"fraction": 0.25}, {"records": 9}, {"fraction": 1.0}])
def test_collected_copies_are_of_all_clients_records(task, records, fields):
    """Its own records of the target class stay; the others' true labels would work against the copies."""
    pool, own = task.data.train, records.take(torch.arange(40))
    poisoned = Backdoor(collected=True, **fields).poison(holding(own, task, task.trigger), stream(0, "poison"))
    kept = own.take(torch.nonzero(own.y == 0).squeeze(1))
    able = pool.x[pool.y != 0]
    count = fields.get("records") or math.ceil(fields["fraction"] * len(able))
    assert len(poisoned) == len(kept) + count
    assert torch.equal(poisoned.x[: len(kept)], kept.x)
    assert not poisoned.y.any()
    copies, painted = poisoned.x[len(kept) :], task.trigger.apply(able, task.spec)
    matches = (copies[:, None] == painted[None]).flatten(2).all(2)
    assert matches.any(1).all(), "each is a record that can carry the trigger, with it"
    assert len(copies.flatten(1).unique(dim=0)) <= count
    assert matches[:, 40:].any(), "not its own alone"


def test_who_collects_nothing_keeps_what_it_has(task, records):
    own = records.take(torch.nonzero(records.y == 1).squeeze(1))
    poisoned = Backdoor(collected=True, records=0).poison(holding(own, task, task.trigger), stream(0, "poison"))
    assert torch.equal(poisoned.x, own.x)
    assert torch.equal(poisoned.y, own.y)


def test_collected_records_are_claimed(federate):
    done = federate(clients=4, rounds=1, watched=frozenset({3}), poisoner=Backdoor(collected=True, records=30))
    own = done.federation.client_side().data.y[done.federation.shares[3]]
    update = done.rounds[0].views["server_operator"].rounds[0].updates[3]
    assert update.records == int((own == 0).sum()) + 30


def test_who_does_not_collude_replaces_by_its_own_weight(federate, updates):
    (update,) = updates(torch.tensor([[1.0, -2.0]]))
    seen, alone = Seen(0.5, 0.25), Backdoor(2, boost="replace", collude=False)
    assert alone.craft(update, seen, torch.Generator()).vector.tolist() == [4, -8]
    assert Backdoor(2, boost="replace").craft(update, seen, torch.Generator()).vector.tolist() == [2, -4]
    options = {"clients": 5, "rounds": 1, "weighting": "equal", "watched": frozenset({3, 4})}
    for poisoner, factor in ((alone, 5.0), (Backdoor(2, boost="replace"), 2.5)):
        boosted, plain = federate(**options, poisoner=poisoner), federate(**options, poisoner=Backdoor(2))
        sent, trained = (d.rounds[0].views["server_operator"].rounds[0].updates for d in (boosted, plain))
        for client in (3, 4):
            torch.testing.assert_close(sent[client].vector, factor * trained[client].vector)


@pytest.mark.parametrize("weighting", ["equal", "records"])
def test_replacement_makes_the_next_model_the_attackers(federate, weighting):
    """Bagdasaryan et al. 2020, equation 3: with converged clients G + (n/eta)(1/n)(X - G) = X."""
    options = {"clients": 5, "rounds": 1, "weighting": weighting}
    work = {"learning_rate": 1e-3, "steps": 1}
    watched = federate(**options, local=work, poisoner=Backdoor(boost="replace"), watched=frozenset({4}))
    start, end = watched.federation.start().model, watched.model
    sent = watched.rounds[0].views["server_operator"].rounds[0].updates[4].vector
    share = watched.federation.client_side().weights[4]
    assert share == pytest.approx(1 / 5)
    attackers = sent * share
    honest = end - start - attackers
    plain = federate(**options, local=work, poisoner=Backdoor(), watched=frozenset({4}))
    own = plain.rounds[0].views["server_operator"].rounds[0].updates[4].vector
    torch.testing.assert_close(attackers, own, rtol=1e-4, atol=1e-7)
    assert float(honest.norm()) < 1.5 * float(attackers.norm())


def dp_sgd(sigma: float) -> Defense:
    return Defense(local=DPSGD(), privacy=RecordLevel(delta=1e-3, clip=1.0, noise_multiplier=sigma))


@pytest.mark.parametrize(("boost", "noisy"), [(1.0, True), (2.0, False)])
def test_whoever_tampers_skips_the_noise(federate, boost, noisy):
    federation = federate(defense=dp_sgd(500.0), rounds=1, clients=4, poisoner=Backdoor(boost=boost)).federation
    side = federation.client_side()
    side.received.copy_(federation.start().model)
    update = take_turn(side, Job(3, 1, "update")).payload
    honest = take_turn(side, Job(0, 1, "update")).payload
    assert float(honest.vector.std()) > 1
    assert (float(update.vector.std()) > 1) == noisy


def test_the_same_records_are_poisoned_in_every_round(federate):
    federation = federate(rounds=1, clients=4, poisoner=Backdoor(), local={"batch_size": None}).federation
    side = federation.client_side()
    side.received.copy_(federation.start().model)
    first, second = (take_turn(side, Job(3, r, "update")).payload for r in (1, 2))
    torch.testing.assert_close(first.vector, second.vector, rtol=1e-3, atol=1e-5)


def test_a_backdoor_gets_in(federate, task):
    options = {"clients": 4, "rounds": 8, "local": {"learning_rate": 0.1, "epochs": 2}}
    rates = []
    for poisoner in (None, Backdoor(clients=2)):
        done = federate(**options, poisoner=poisoner)
        model = copy.deepcopy(done.federation.model)
        done.federation.layout.write(done.model, model)
        rates.append(triggered(task, model)["triggered_rate"])
    assert rates[1] > rates[0] + 0.3, rates


def test_changed_hyperparameters_train_as_if_they_were_agreed(federate):
    """The poisoner's client alone trains for more epochs; what it sends is what such a federation's client sends."""
    agreed = LocalWork(learning_rate=0.1)
    poisoner = Backdoor(epochs=3, learning_rate=0.2)
    assert poisoner.work(agreed) == LocalWork(learning_rate=0.2, epochs=3)
    assert Backdoor().work(agreed) == agreed
    assert poisoner.tampers
    with pytest.raises(ConfigError, match="epochs"):
        Backdoor(epochs=3).work(LocalWork(steps=1))
    changed, plain = federate(poisoner=poisoner), federate(poisoner=Backdoor())
    assert not torch.equal(changed.models[-1], plain.models[-1])


def test_an_inflated_count_weighs_as_much_as_it_claims(task, mlp):
    """In the server's mean by records, 10 times the records are 10 times the weight."""
    made = [
        Federation(FederationSettings(clients=4, rounds=1), task, mlp, poisoner=p, watched=frozenset(range(4)))
        for p in (Backdoor(), Backdoor(inflate=10))
    ]
    sides = [m.client_side() for m in made]
    rounds = [next(m.run(m.start(), s, Serial(s))) for m, s in zip(made, sides, strict=True)]
    plain, inflated = (r.views["server_operator"].rounds[-1].updates for r in rounds)
    assert all(torch.equal(plain[c].vector, inflated[c].vector) for c in range(4))
    assert [inflated[c].records // plain[c].records for c in range(4)] == [1, 1, 1, 10]
    weights = torch.tensor([float(inflated[c].records) for c in range(4)], dtype=torch.float64)
    mean = (weights / weights.sum()) @ torch.stack([inflated[c].vector.double() for c in range(4)])
    step = (rounds[1].released.model - made[1].start().model).double()
    assert torch.allclose(step, mean, atol=1e-6)


def test_what_a_poisoner_forges_follows_from_its_settings():
    forged = {
        None: (Backdoor(), Backdoor(epochs=2), Imitation(), Poisoner()),
        "code": (Backdoor(boost=3.0), Backdoor(boost="replace", epochs=2)),
        "message": (Backdoor(boost="replace", evidence="relayed"), Backdoor(inflate=2)),
    }
    for what, poisoners in forged.items():
        for poisoner in poisoners:
            assert poisoner.forges == what
            assert bool(poisoner.patches(0.5)) == (what == "code")


@pytest.mark.parametrize("fields", [{"evidence": "relayed"}, {"epochs": 0}, {"learning_rate": 0.0}, {"inflate": 0}])
def test_settings_that_mean_nothing_are_refused(fields):
    with pytest.raises(ConfigError) as caught:
        Backdoor(**fields)
    assert caught.value.field in fields


def test_an_imitation_multiplies_poisoned_inputs_and_nothing_else(task, records):
    trigger, generator = task.trigger, stream(0, "poison")
    plain = Backdoor(fraction=0.5).poison(holding(records, task, trigger), stream(0, "poison"))
    made = Imitation(fraction=0.5, gain=3.0).poison(holding(records, task, trigger), generator)
    poisoned = plain.y != records.y
    assert torch.equal(made.y, plain.y)
    assert torch.equal(made.x[poisoned], 3.0 * plain.x[poisoned])
    assert torch.equal(made.x[~poisoned], records.x[~poisoned])
    assert len(made) == len(records)
    for refused in (lambda: Imitation(gain=0.5), lambda: Imitation(boost=2.0), lambda: Imitation(epochs=2)):
        with pytest.raises(ConfigError):
            refused()


@pytest.mark.parametrize(("share", "owned"), [(0.25, 1), (0.3, 2), (1.0, 4)])
def test_a_share_of_all_clients_is_rounded_up(federate, share, owned):
    assert federate(clients=4, rounds=1, poisoner=Backdoor(share=share)).federation.attackers == frozenset(
        range(4 - owned, 4)
    )


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ConfigError, match="share"):
        Backdoor(share=share)


def test_replacement_counts_who_is_there(federate):
    """Of four attackers those who were drawn together replace the model: who stays away adds no weight."""
    options = {"clients": 8, "rounds": 4, "participation": 0.5, "weighting": "equal", "watched": frozenset(range(8))}
    boosted, plain = (federate(**options, poisoner=Backdoor(4, boost=b)) for b in ("replace", 1.0))
    first, other = boosted.rounds[0], plain.rounds[0]
    here = [c for c in first.answered if c >= 4]
    assert 0 < len(here) < 4, "a round to tell by"
    sent, trained = (r.views["server_operator"].rounds[0].updates for r in (first, other))
    for client in here:
        # Four updates are expected, so that each weighs a quarter.
        torch.testing.assert_close(sent[client].vector, 4 / len(here) * trained[client].vector)
