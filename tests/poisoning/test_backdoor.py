import copy
import math

import pytest
import torch

from privbench.attacks.poisoning import Backdoor, Holding, Imitation, Poisoner, Seen
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.client import Job, take_turn
from privbench.benchmarks.federation.engine import Serial
from privbench.benchmarks.federation.federation import Federation
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.settings import FederationSettings, LocalWork
from privbench.benchmarks.measures.poisoning import triggered
from privbench.benchmarks.tasks.triggers import Patch
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
