"""Secure aggregation in a federation: the sum is that of the plain channel, the operator sees it alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from privbench.attacks.leakage.observe import observe
from privbench.attacks.poisoning import Backdoor
from privbench.benchmarks import attacking
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.federation import Federation
from privbench.benchmarks.federation.server import ServerSGD
from privbench.benchmarks.federation.settings import FederationSettings
from privbench.benchmarks.federation.view import ADVERSARIES, collude
from privbench.defenses import Defense
from privbench.defenses.accounting import ClientLevel, ClientPlan, RecordLevel
from privbench.defenses.aggregation import ClippedMean, CoordinateMedian, Diverged, FixedDenominatorMean, Mean
from privbench.defenses.channel import Plaintext, RoundRefused, SecAgg
from privbench.defenses.local import DPSGD, ClientNoise

SHARED = ClientLevel(delta=1e-2, clip=0.3, noise_multiplier=0.5, noise="distributed", accountant="rdp")
NOISED = {"local": ClientNoise("discrete"), "aggregation": FixedDenominatorMean(), "privacy": SHARED}
FINE = SecAgg(range=4.0, bits=24)


@pytest.mark.parametrize(
    ("settings", "workers"),
    [
        ({}, 1),
        ({"weighting": "equal", "server": ServerSGD(momentum=0.9), "rounds": 3}, 2),
        ({"participation": 0.7, "dropout": 0.1}, 1),
    ],
    ids=["records", "equal", "sampled"],
)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_the_model_is_that_of_the_plain_channel_up_to_rounding(
    federate: Callable[..., Any], settings: dict[str, Any], workers: int, rounding: Any
):
    plain = federate(**settings)
    masked = federate(defense=Defense(channel=SecAgg(bits=20, rounding=rounding)), workers=workers, **settings)
    step = SecAgg(bits=20).grid
    first = (plain.models[0] - masked.models[0]).abs().max()
    # One round moves the model by the mean: an error of at most a step, and of float32 on the way.
    assert 0 < float(first) <= step * (1.001 if rounding == "stochastic" else 0.501) + 1e-7
    last = (plain.models[-1] - masked.models[-1]).abs().max()
    assert float(last) < 1e-3 * float((plain.models[-1] - plain.models[0]).abs().max())


def test_numbers_do_not_depend_on_workers_or_keys(federate: Callable[..., Any]):
    channels = [SecAgg(late_dropout=0.1, threshold=0.51, keys=keys) for keys in ("system", "seeded", "system")]
    runs = zip(channels, (1, 2, 2), strict=True)
    models = [federate(defense=Defense(channel=c), clients=8, workers=w).model for c, w in runs]
    assert all(torch.equal(models[0], model) for model in models[1:])


def test_what_is_left_for_each_adversary(federate: Callable[..., Any]):
    done = federate(defense=Defense(channel=SecAgg()), watched=frozenset(range(6)))
    seen = done.rounds[0].views
    assert set(seen) == set(ADVERSARIES)
    for name in ("server_operator", "active_operator"):
        operator = seen[name].rounds[-1]
        assert operator.updates == {}
        assert operator.participants == tuple(range(6))
        assert operator.aggregate is not None
        assert operator.aggregate.records == sum(done.federation.facts.records)
    for name in ("participant", "model_recipient", "network"):
        assert seen[name].rounds[-1].aggregate is None
    size = done.federation.layout.size
    masked, keys, sealed, shares = 4 * (size + 2), 64, 5 * (64 + 16), 6 * 32
    assert set(seen["network"].rounds[-1].sizes.values()) == {masked + keys + sealed + shares}
    costs = done.rounds[0].released.costs
    assert costs["channel_received_bytes"] == 6 * 64 + 5 * 80 + 1
    assert {"channel_sharing_seconds", "channel_masking_seconds", "channel_unmasking_seconds"} <= set(costs)


def test_the_operators_aggregate_is_attacked_as_a_sum(federate: Callable[..., Any]):
    """What an attack starts from is the mean of six clients; with all others colluding, the victim's own update."""
    one_step = {"batch_size": None}
    plain = federate(local=one_step, rounds=1, watched=frozenset(range(6)))
    done = federate(local=one_step, rounds=1, watched=frozenset(range(6)), defense=Defense(channel=SecAgg(bits=20)))
    view = done.rounds[0].views["server_operator"]
    updates = plain.rounds[0].views["server_operator"].rounds[0].updates
    rate = done.federation.settings.local.learning_rate
    weights = torch.tensor(done.federation.facts.records).double()
    found = observe(view, 1, 0)
    assert found is not None
    assert (found.source, found.exact) == ("aggregate", False)
    assert found.records == sum(done.federation.facts.records)
    mean = sum(w * updates[c].vector.double() for c, w in enumerate(weights)) / weights.sum()
    assert isinstance(mean, Tensor)
    step = SecAgg(bits=20).grid
    torch.testing.assert_close(found.gradient.double(), -mean / rate, atol=2 * step / rate, rtol=1e-5)
    alone = observe(collude(view, {1: {c: updates[c] for c in range(1, 6)}}), 1, 0)
    assert alone is not None
    assert (alone.source, alone.exact) == ("aggregate", True)
    share = float(weights.sum() / weights[0])
    torch.testing.assert_close(alone.gradient, -updates[0].vector / rate, atol=2 * share * step / rate, rtol=1e-4)


def test_noise_of_colluders_goes_with_their_updates(federate: Callable[..., Any]):
    done = federate(defense=Defense(channel=FINE, **NOISED), rounds=1, clients=6)
    view, plan = done.rounds[0].views["server_operator"], done.federation.plan
    side = done.federation.client_side()
    side.received.copy_(view.rounds[0].sent)
    own = {c: attacking.compute(side, attacking.Job(c, 1, "update")) for c in (4, 5)}
    together, left = observe(view, 1, 0), observe(collude(view, {1: own}), 1, 0)
    assert together is not None
    assert left is not None
    each = plan.message_multiplier * plan.clip
    assert together.known.noise_std == pytest.approx(each * 6**0.5 / 6)
    assert left.known.noise_std == pytest.approx(each * 4**0.5 / 4)
    # What colluders compute a second time is what they sent, noise and rounding included.
    everybody = {c: attacking.compute(side, attacking.Job(c, 1, "update")).vector for c in range(6)}
    mean = sum(v.double() for v in everybody.values()) / 6
    assert isinstance(mean, torch.Tensor)
    assert torch.equal(mean.float(), view.rounds[0].aggregate.vector)


def test_drop_outs_are_counted_and_left_out(federate: Callable[..., Any]):
    done = federate(
        defense=Defense(channel=SecAgg(late_dropout=0.2, unmask_dropout=0.1, threshold=0.51, rounding="nearest")),
        clients=12, dropout=0.05, rounds=3, seed=2,
    )  # fmt: skip
    for finished in done.rounds:
        seen = finished.views["server_operator"].rounds[-1]
        assert finished.answered == seen.participants
        assert len(finished.answered) < len(finished.invited)
        assert set(finished.answered) < set(seen.sizes), "who shared keys and sent nothing was seen as well"
        assert seen.aggregate is not None
        assert seen.aggregate.records == sum(done.federation.facts.records[c] for c in finished.answered)
    assert done.rounds[-1].state.cohorts == [len(r.answered) for r in done.rounds]


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({"threshold": 1.0}, {"dropout": 0.3}),
        ({"late_dropout": 0.5, "threshold": 0.9}, {}),
        ({"unmask_dropout": 0.5, "threshold": 0.9}, {}),
    ],
    ids=["early", "late", "unmasking"],
)
def test_below_the_threshold_the_round_is_refused(
    federate: Callable[..., Any], fields: dict[str, Any], settings: dict[str, Any]
):
    with pytest.raises(RoundRefused, match=r"below_threshold: \d+ clients .*nothing is released"):
        federate(defense=Defense(channel=SecAgg(**fields)), **settings)


@pytest.mark.parametrize("rule", [CoordinateMedian(), ClippedMean(1.0)], ids=["median", "clipped mean"])
def test_rules_that_read_updates_are_refused(rule: Any):
    with pytest.raises(ConfigError, match="have clients clip themselves") as caught:
        Defense(channel=SecAgg(), aggregation=rule)
    assert (caught.value.field, caught.value.value) == ("aggregation", type(rule).__name__)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"range": 0.0}, "range"),
        ({"bits": 1}, "bits"),
        ({"bits": 31}, "bits"),
        ({"bits": 49, "ring": 64}, "bits"),
        ({"threshold": 0.5}, "threshold"),
        ({"threshold": 1.1}, "threshold"),
        ({"late_dropout": 1.0}, "late_dropout"),
        ({"unmask_dropout": -0.1}, "unmask_dropout"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], field: str):
    with pytest.raises(ConfigError) as caught:
        SecAgg(**fields)
    assert caught.value.field == field


def make(task: Any, mlp: Any, defense: Defense, **settings: Any) -> Federation:
    return Federation(FederationSettings(**{"clients": 6, "rounds": 2, **settings}), task, mlp, defense)


def test_a_cohort_that_could_overflow_is_refused_before_training(task: Any, mlp: Any):
    """200 records in all: 2^31 over 200 is 23.4 bits."""
    make(task, mlp, Defense(channel=SecAgg(bits=24)))
    with pytest.raises(ConfigError, match="weights of 200 in all") as caught:
        make(task, mlp, Defense(channel=SecAgg(bits=25)))
    assert (caught.value.field, caught.value.value) == ("defense.channel.bits", 25)
    make(task, mlp, Defense(channel=SecAgg(bits=25)), weighting="equal")
    make(task, mlp, Defense(channel=SecAgg(bits=25, ring=64)))


def test_a_sum_of_one_is_refused(task: Any, mlp: Any):
    for settings, field in (({"clients": 1}, "clients"), ({"participation": 0.2}, "participation")):
        with pytest.raises(ConfigError, match="a sum of one is its update") as caught:
            make(task, mlp, Defense(channel=SecAgg()), **settings)
        assert caught.value.field == f"federation.{field}"


def test_a_poisoner_gets_no_updates_and_is_limited_by_the_range(federate: Callable[..., Any]):
    asked: list[int] = []

    class Nosy(Backdoor):
        @property
        def asks(self) -> Any:
            return frozenset({"honest_updates"})

        def craft(self, update: Any, seen: Any, generator: Any) -> Any:
            asked.append(len(seen.honest))
            return replace(update, vector=update.vector * 1e6, records=10**7)

    done = federate(defense=Defense(channel=SecAgg()), poisoner=Nosy(boost=2.0), rounds=1)
    assert asked == [0]
    aggregate = done.rounds[0].views["server_operator"].rounds[0].aggregate
    assert float(aggregate.vector.abs().max()) <= 1.0, "its coordinates are clipped, its claim has room"
    assert aggregate.records > 200


def test_an_update_that_is_not_finite_stops_the_run(federate: Callable[..., Any]):
    with pytest.raises(Diverged, match="NaN or infinity in round 1"):
        federate(defense=Defense(channel=SecAgg()), local={"learning_rate": 1e30})


# Noise in the sum


def test_the_released_sum_is_on_the_grid_and_carries_the_noise(federate: Callable[..., Any]):
    done = federate(defense=Defense(channel=FINE, **NOISED), clients=8)
    plan, aggregate = done.federation.plan, done.rounds[0].views["server_operator"].rounds[0].aggregate
    assert isinstance(plan, ClientPlan)
    total = aggregate.vector.double() * 8 / FINE.grid
    assert float((total - total.round()).abs().max()) < 1e-2, "a sum of integers, divided by a power of two"
    # The clipped updates' own length is at most the clip, a tenth of the noise's.
    assert float(aggregate.vector.double().std()) == pytest.approx(plan.noise_std(8), rel=0.1)


def test_gaussian_noise_is_refused_where_integers_are_summed():
    with pytest.raises(ConfigError, match="discrete: this channel sums integers") as caught:
        Defense(channel=FINE, **{**NOISED, "local": ClientNoise()})
    assert caught.value.field == "local.noise"
    with pytest.raises(ConfigError, match="no grid"):
        Defense(channel=Plaintext(), **NOISED)
    for channel in (SecAgg(range=3.0, bits=24), SecAgg(range=4.0, bits=26)):
        with pytest.raises(ConfigError, match="a power of two, and at most 24 bits"):
            Defense(channel=channel, **NOISED)


def test_noise_needs_an_accountant_with_a_proof_and_room(task: Any, mlp: Any):
    pld = Defense(channel=FINE, **{**NOISED, "privacy": replace(SHARED, accountant="pld")})
    with pytest.raises(ConfigError, match="rdp: it alone has a proof") as caught:
        make(task, mlp, pld)
    assert caught.value.field == "defense.privacy.accountant"
    with pytest.raises(ConfigError, match="6 deviations") as caught:
        make(task, mlp, Defense(channel=SecAgg(range=0.5, bits=24), **NOISED))
    assert caught.value.field == "defense.channel.range"
    with pytest.raises(ConfigError, match="rounding 1210 coordinates") as caught:
        make(task, mlp, Defense(channel=SecAgg(range=4.0, bits=10), **NOISED))
    assert caught.value.field == "defense.channel.bits"


def test_fresh_noise_needs_fresh_keys(task: Any, mlp: Any):
    seeded, fresh = replace(FINE, keys="seeded"), replace(SHARED, noise_source="system")
    with pytest.raises(ConfigError, match="can unmask") as caught:
        make(task, mlp, Defense(channel=seeded, **{**NOISED, "privacy": fresh}))
    assert caught.value.field == "defense.channel.keys"
    make(task, mlp, Defense(channel=seeded, **NOISED))


def test_drop_outs_need_noise_made_for_fewer(task: Any, mlp: Any, federate: Callable[..., Any]):
    for settings, channel in (({"dropout": 0.1}, FINE), ({}, replace(FINE, late_dropout=0.1))):
        with pytest.raises(ConfigError, match="takes its share of the noise along") as caught:
            make(task, mlp, Defense(channel=channel, **NOISED), **settings)
        assert caught.value.field == "federation.dropout"
    room = {**NOISED, "privacy": replace(SHARED, present=0.6)}
    done = federate(defense=Defense(channel=replace(FINE, late_dropout=0.2, threshold=0.6), **room), clients=8, seed=3)
    plan = done.federation.plan
    assert isinstance(plan, ClientPlan)
    assert (plan.needed, plan.shares) == (5, 5)
    assert min(done.rounds[-1].state.cohorts) >= 5
    # Each share is a fifth of the variance, so that five of them carry what the statement counts.
    assert plan.message_multiplier * 5**0.5 == pytest.approx(0.5)
    stated = plan.statements(done.rounds[-1].state.ledger)
    assert [s["noise_multiplier"] for s in stated] == pytest.approx([0.5, 0.5])
    with pytest.raises(ConfigError, match="a plaintext channel holds no sum back"):
        replace(SHARED, present=0.6).bind(replace(done.federation.facts, operator_reads_updates=True))


def test_needed_clients_raise_the_threshold(task: Any, mlp: Any):
    private = make(task, mlp, Defense(channel=FINE, **NOISED))
    session = private.session(private.start())
    assert session._parameters.least(6) == 6  # pyright: ignore[reportAttributeAccessIssue]


def test_record_level_noise_goes_through(federate: Callable[..., Any]):
    record = RecordLevel(delta=1e-4, clip=1.0, noise_multiplier=1.0)
    done = federate(defense=Defense(channel=SecAgg(), local=DPSGD(), privacy=record), rounds=1)
    assert done.federation.plan is not None
    assert isinstance(done.federation.defense.aggregation, Mean)
