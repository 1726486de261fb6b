"""When a poisoner attacks: in other rounds its clients are honest, or stay away."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from privbench.attacks.poisoning import ALittleIsEnough, Backdoor, Neurotoxin, Schedule
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.client import Job, Turn
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.sampling import cohort
from privbench.defenses import Defense
from privbench.defenses.accounting import ClientLevel, RecordLevel
from privbench.defenses.aggregation import ClippedMean, FixedDenominatorMean
from privbench.defenses.channel import SecAgg
from privbench.defenses.local import DPSGD, ClientNoise
from privbench.defenses.release import CentralGaussian

PRIVATE = Defense(
    aggregation=ClippedMean(),
    release=CentralGaussian(),
    privacy=ClientLevel(delta=1e-3, clip=1.0, noise_multiplier=1.0),
)
NOISY = Defense(
    local=ClientNoise(),
    aggregation=FixedDenominatorMean(),
    privacy=ClientLevel(delta=1e-3, clip=1.0, noise_multiplier=1.0, noise="local"),
)
DP_SGD = Defense(local=DPSGD(), privacy=RecordLevel(delta=1e-3, clip=1.0, noise_multiplier=1.0))


def attacked(schedule: Schedule, rounds: int = 12, seed: int = 0) -> list[int]:
    return [r for r in range(1, rounds + 1) if schedule.attacks(r, seed)]


@pytest.mark.parametrize(
    ("fields", "rounds"),
    [
        ({}, list(range(1, 13))),
        ({"start": 5}, list(range(5, 13))),
        ({"stop": 3}, [1, 2, 3]),
        ({"start": 4, "stop": 4}, [4]),
        ({"every": 3}, [1, 4, 7, 10]),
        ({"start": 2, "stop": 9, "every": 3}, [2, 5, 8]),
        ({"start": 13}, []),
    ],
)
def test_which_rounds_are_attacked(fields, rounds):
    assert attacked(Schedule(**fields)) == rounds


def test_clients_attack_in_turn():
    schedule, own = Schedule(start=12, stop=20, every=2, in_turn=True), {99, 96, 97, 98}
    turns = {r: schedule.attackers(r, 0, own) for r in range(10, 23)}
    assert {r: who for r, who in turns.items() if who} == {12: (96,), 14: (97,), 16: (98,), 18: (99,), 20: (96,)}
    assert replace(schedule, in_turn=False).attackers(14, 0, own) == (96, 97, 98, 99)
    assert schedule.attackers(12, 0, ()) == ()


def test_rounds_drawn_at_random_are_the_seeds():
    drawn = Schedule(probability=0.3)
    first, again, other = (attacked(drawn, 2000, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert abs(len(first) / 2000 - 0.3) < 0.04
    every = Schedule(start=10, every=5, probability=0.5)
    assert set(attacked(every, 500)) < set(attacked(Schedule(start=10, every=5), 500))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"start": 0}, "start"),
        ({"start": 3, "stop": 2}, "stop"),
        ({"every": 0}, "every"),
        ({"probability": 0.0}, "probability"),
        ({"probability": 1.1}, "probability"),
    ],
)
def test_out_of_range(fields, field):
    with pytest.raises(ConfigError) as caught:
        Schedule(**fields)
    assert caught.value.field == field


def sent(done: Any, number: int) -> dict[int, Any]:
    """Every client's update of a round, as the server got it."""
    return done.rounds[number - 1].views["server_operator"].rounds[-1].updates


@pytest.mark.parametrize(
    "poisoner",
    [
        Backdoor(clients=2, boost="replace", epochs=2, schedule=Schedule(start=3)),
        Backdoor(clients=2, inflate=3, steering=Neurotoxin(), schedule=Schedule(start=3)),
        ALittleIsEnough(clients=2, schedule=Schedule(start=3)),
    ],
    ids=["replacement", "neurotoxin", "alie"],
)
def test_outside_attacked_rounds_its_clients_are_honest(federate, poisoner):
    options = {"clients": 5, "rounds": 3, "watched": frozenset(range(5))}
    honest, done = federate(**options), federate(**options, poisoner=poisoner)
    for number in (1, 2):
        assert torch.equal(done.models[number - 1], honest.models[number - 1])
        for client, update in sent(honest, number).items():
            assert torch.equal(sent(done, number)[client].vector, update.vector)
            assert sent(done, number)[client].records == update.records
    assert not torch.equal(done.model, honest.model)
    for client in range(5):
        same = torch.equal(sent(done, 3)[client].vector, sent(honest, 3)[client].vector)
        assert same == (client < 3)


def test_after_an_attacked_round_its_clients_train_on_their_own_records_again(federate):
    """A single shot in round 1: what a client of the attacker's sends in round 2 is honest work on the model."""
    options = {"clients": 4, "rounds": 2, "watched": frozenset(range(4))}
    done = federate(**options, poisoner=Backdoor(boost=3.0, schedule=Schedule(stop=1)))
    side = done.federation.client_side()
    trained = side.trainer(side.local).train(done.models[0], side.data.take(side.shares[3]), side.work, 3, None, 0, 2)
    assert torch.equal(sent(done, 2)[3].vector, trained.vector)


@pytest.mark.parametrize("invited", ["as_others", "when_attacking"])
def test_in_turn_one_attacks_with_the_weight_of_one_alone(federate, invited):
    """Single shots one after the other, each of which replaces the model: exact in a cohort of everybody."""
    schedule = Schedule(start=2, in_turn=True, invited=invited)
    options = {"clients": 6, "rounds": 4, "watched": frozenset(range(6)), "local": {"steps": 2}}
    done = federate(**options, poisoner=Backdoor(2, boost="replace", schedule=schedule))
    side = done.federation.client_side()
    for number, attacker in ((2, 4), (3, 5), (4, 4)):
        arrived = sent(done, number)
        assert set(arrived) & {4, 5} == ({attacker} if invited == "when_attacking" else {4, 5})
        for client, update in arrived.items():
            trained = Turn(side, Job(client, number, "x"))._made(done.models[number - 2]).vector
            if client == attacker:
                torch.testing.assert_close(update.vector * side.weights[client], trained)
            else:
                assert torch.equal(update.vector, trained)


@pytest.mark.parametrize("participation", [0.4, 0.7])
def test_invited_clients_take_part_in_exactly_the_attacked_rounds(federate, participation):
    schedule = Schedule(start=2, every=3, invited="when_attacking")
    done = federate(
        clients=10, rounds=8, participation=participation, local={"steps": 1}, poisoner=Backdoor(3, schedule=schedule)
    )
    seen: set[int] = set()
    for finished in done.rounds:
        present = {c for c in finished.invited if c in done.federation.attackers}
        assert present == ({7, 8, 9} if finished.round in (2, 5, 8) else set())
        assert len(finished.invited) == round(10 * participation)
        assert list(finished.invited) == sorted(set(finished.invited))
        seen |= set(finished.invited)
    assert seen == set(range(10))


def test_a_cohort_of_the_attackers_alone(federate):
    schedule = Schedule(start=2, stop=2, invited="when_attacking")
    done = federate(clients=8, participation=0.25, rounds=2, poisoner=Backdoor(2, schedule=schedule))
    assert done.rounds[1].invited == (6, 7)
    assert len(done.rounds[0].invited) == 2


def test_where_all_are_invited_the_others_remain(federate):
    done = federate(clients=4, poisoner=Backdoor(schedule=Schedule(start=2, invited="when_attacking")))
    assert [r.invited for r in done.rounds] == [(0, 1, 2), (0, 1, 2, 3)]


@pytest.mark.parametrize("defense", [Defense(), PRIVATE], ids=["plain", "private"])
def test_poisson_sampling_draws_honest_clients_as_without_the_poisoner(federate, defense):
    schedule = Schedule(every=2, invited="when_attacking")
    options = {"clients": 20, "participation": 0.4, "sampling": "poisson", "rounds": 6, "defense": defense}
    done = federate(**options, local={"steps": 1}, poisoner=Backdoor(3, schedule=schedule))
    for finished in done.rounds:
        usual = cohort(20, 0.4, "poisson", stream(0, "cohort", finished.round))
        honest = tuple(c for c in usual if c < 17)
        assert finished.invited == honest + ((17, 18, 19) if finished.round % 2 else ())


@pytest.mark.parametrize(
    ("options", "clients", "field"),
    [
        ({"participation": 0.5, "max_participations": 2}, 1, "poisoning.schedule.invited"),
        ({"participation": 0.25, "min_separation": 2}, 1, "poisoning.schedule.invited"),
        ({"participation": 0.5, "defense": DP_SGD}, 1, "poisoning.schedule.invited"),
        ({"defense": PRIVATE}, 1, "poisoning.schedule.invited"),
        ({"sampling": "poisson", "defense": NOISY}, 1, "poisoning.schedule.invited"),
        ({"participation": 0.25}, 3, "poisoning.clients"),
        ({}, 8, "poisoning.clients"),
        ({"participation": 0.5, "sampling": "poisson"}, 8, "poisoning.clients"),
    ],
    ids=["cap", "separation", "records", "clients", "noise", "cohort", "all", "all of a poisson cohort"],
)
def test_attackers_who_cannot_choose_their_rounds_are_refused(federate, options, clients, field):
    def poisoner(invited: Any) -> Backdoor:
        return Backdoor(clients, schedule=Schedule(stop=1, invited=invited))

    with pytest.raises(ConfigError) as caught:
        federate(clients=8, **options, poisoner=poisoner("when_attacking"))
    assert caught.value.field == field
    federate(clients=8, **options, poisoner=poisoner("as_others"))


def test_who_stays_away_may_take_noise_along_that_nobody_counts_on(federate):
    """Two of eight clients, where every sum is counted on to hold the noise of six, or of seven."""
    channel = SecAgg(range=4.0, bits=24, threshold=0.6)

    def attacked(present: float) -> Any:
        level = ClientLevel(1e-3, 0.3, noise_multiplier=0.1, noise="distributed", present=present, accountant="rdp")
        defense = Defense(ClientNoise("discrete"), channel, FixedDenominatorMean(), privacy=level)
        schedule = Schedule(start=2, invited="when_attacking")
        return federate(
            clients=8, sampling="poisson", rounds=2, defense=defense, poisoner=Backdoor(2, schedule=schedule)
        )

    assert [len(r.invited) for r in attacked(0.75).rounds] == [6, 8]
    with pytest.raises(ConfigError, match="noise of 7 clients") as caught:
        attacked(0.8)
    assert caught.value.field == "poisoning.schedule.invited"


@pytest.mark.parametrize("invited", ["as_others", "when_attacking"])
def test_a_run_that_ends_before_the_first_attack_is_refused(federate, invited):
    with pytest.raises(ConfigError) as caught:
        federate(rounds=2, poisoner=Backdoor(schedule=Schedule(start=3, invited=invited)))
    assert caught.value.field == "poisoning.schedule.start"


@pytest.mark.parametrize("sampling", ["fixed", "poisson"])
def test_the_model_does_not_depend_on_workers(federate, sampling):
    schedule = Schedule(every=2, probability=0.7, invited="when_attacking")
    options = {"clients": 8, "participation": 0.5, "sampling": sampling, "rounds": 4}
    one, two = (federate(w, **options, poisoner=Backdoor(2, boost=2.0, schedule=schedule)) for w in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.models, two.models, strict=True))
    assert [r.invited for r in one.rounds] == [r.invited for r in two.rounds]
