"""Client-level noise by whoever adds it: how much it is, what it promises to whom, and what is refused."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from privbench.attacks.poisoning import Backdoor
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.update import Layout, Update
from privbench.defenses import Defense
from privbench.defenses.accounting import ClientLevel, ClientPlan, Facts, RecordLevel
from privbench.defenses.accounting.accountant import epsilon
from privbench.defenses.accounting.calibration import noise_multiplier
from privbench.defenses.aggregation import ClippedMean, CoordinateMedian, FixedDenominatorMean, Mean
from privbench.defenses.channel import Attested, Plaintext
from privbench.defenses.local import DPSGD, ClientNoise
from privbench.defenses.release import CentralGaussian

CLIENTS, ROUNDS, DELTA, CLIP = 16, 20, 1e-3, 0.5
D = 200_000
FIVE_SIGMA = 5 / math.sqrt(2 * D)
"""Of the root mean square of D normal draws, relative (chi distribution)."""


def facts(**changes: Any) -> Facts:
    n = changes.get("clients", CLIENTS)
    fields = {
        "clients": n,
        "rounds": ROUNDS,
        "participation": 1.0,
        "sampling": "fixed",
        "records": (40,) * n,
        "batch": (10,) * n,
        "steps": (4,) * n,
    }
    return Facts(**{**fields, **changes})


def level(noise: Any, **changes: Any) -> ClientLevel:
    return ClientLevel(**{"delta": DELTA, "clip": CLIP, "epsilon": 8.0, "noise": noise, **changes})


def by_clients(noise: Any = "local", channel: Any = None, **changes: Any) -> Defense:
    """Noise that clients add."""
    stations = {"local": ClientNoise(), "aggregation": FixedDenominatorMean(), "channel": channel or Plaintext()}
    return Defense(**stations, privacy=level(noise, **changes))


def sent(plan: ClientPlan, vector: torch.Tensor, client: int = 0, **more: Any) -> Update:
    layout = Layout(("w",), ((len(vector),),), 1)
    generator = torch.Generator().manual_seed(client)
    return ClientNoise().send(Update(vector, layout, "update", 7, **more), client, plan, generator)


def said(plan: ClientPlan, adversary: str, rounds: int = ROUNDS) -> dict[str, Any]:
    ledger = [plan.charge(n, range(CLIENTS)) for n in range(1, rounds + 1)]
    return next(s for s in plan.statements(ledger) if s["adversary"] == adversary)


@pytest.mark.parametrize("source", ["seeded", "system"])
@pytest.mark.parametrize(("noise", "divisor"), [("local", 1), ("distributed", math.sqrt(CLIENTS))])
def test_a_message_carries_z_c_or_a_share_of_it(noise, divisor, source):
    plan = level(noise, epsilon=None, noise_multiplier=2.0, noise_source=source).bind(facts())
    message = sent(plan, torch.zeros(D)).vector
    std = 2.0 * CLIP / divisor
    assert float(message.square().mean().sqrt()) == pytest.approx(std, rel=FIVE_SIGMA)
    assert abs(float(message.mean())) < 5 * std / math.sqrt(D)
    assert plan.message_multiplier * CLIP == pytest.approx(std)


def test_a_client_clips_its_whole_update():
    plan = level("local", epsilon=None, noise_multiplier=0.0).bind(facts())
    long, short = torch.full((50,), 3.0), torch.full((50,), 0.01)
    clipped = sent(plan, long).vector.double()
    assert CLIP * (1 - 1e-5) < float(clipped.norm()) <= CLIP
    assert torch.allclose(clipped / clipped.norm(), (long / long.norm()).double())
    assert torch.equal(sent(plan, short).vector, short)
    assert torch.equal(long, torch.full((50,), 3.0)), "the update itself is not changed"
    assert sent(plan, short, extras={"clipped": torch.ones(1)}).extras == {}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_counts_as_zero_and_is_noised(bad):
    plan = level("local").bind(facts())
    vector = torch.zeros(100)
    vector[3] = bad
    assert torch.equal(sent(plan, vector).vector, sent(plan, torch.zeros(100)).vector)
    assert float(sent(plan, vector).vector.std()) > 0


def test_the_same_epsilon_takes_the_same_multiplier_and_local_noise_sqrt_k_times_as_much():
    """Settings (b), (c) and (d) of docs/privacy-settings.md; sampling amplifies nothing against who sees it."""
    z = noise_multiplier(8.0, DELTA, 1.0, ROUNDS)
    central, local, distributed = (level(n).bind(facts()) for n in ("central", "local", "distributed"))
    assert central.noise_multiplier == local.noise_multiplier == distributed.noise_multiplier == z
    assert central.noise_std(CLIENTS) == pytest.approx(z * CLIP / CLIENTS)
    assert distributed.noise_std(CLIENTS) == pytest.approx(central.noise_std(CLIENTS))
    assert local.noise_std(CLIENTS) / central.noise_std(CLIENTS) == pytest.approx(math.sqrt(CLIENTS), rel=1e-12)


def test_sampling_makes_central_noise_less_but_no_other():
    some = facts(participation=0.5, sampling="poisson")
    assert level("central").bind(some).noise_multiplier < level("local").bind(some).noise_multiplier
    assert level("local").bind(some).noise_multiplier == level("local").bind(facts()).noise_multiplier


def test_local_noise_by_adversary():
    plan = level("local").bind(facts())
    operator, recipient = said(plan, "server_operator"), said(plan, "model_recipient")
    z = plan.noise_multiplier
    assert 7.9 < operator["epsilon"] <= 8.0
    exact = epsilon([((1.0, z * math.sqrt(CLIENTS)), ROUNDS)], DELTA)
    assert exact <= recipient["epsilon"] <= exact + 1e-4
    # Local DP compares any two updates, which lie up to 2 C apart.
    both = epsilon([((1.0, z / 2), ROUNDS)], DELTA)
    assert both <= operator["epsilon_replace_one"] <= both + 1e-4
    assert operator["adjacency"] == recipient["adjacency"] == "zero_out"
    assert operator["simulated"]
    assert not said(level("local", noise_source="system").bind(facts()), "server_operator")["simulated"]


@pytest.mark.parametrize("changes", [{"participation": 0.5, "sampling": "poisson"}, {"dropout": 0.1}])
def test_where_cohorts_vary_a_client_counts_on_its_own_noise_alone(changes):
    plan = level("local").bind(facts(**changes))
    assert plan.shares == 1
    assert said(plan, "model_recipient")["epsilon"] == said(plan, "server_operator")["epsilon"]


def test_a_fixed_cohort_counts_its_own_size():
    plan = level("local").bind(facts(participation=0.5, sampling="fixed"))
    assert plan.shares == plan.needed == CLIENTS // 2
    assert plan.noise_std(8) == pytest.approx(plan.noise_multiplier * CLIP / math.sqrt(8))


def test_distributed_noise_by_adversary():
    hidden = level("distributed").bind(facts(operator_reads_updates=False))
    for adversary in ("server_operator", "model_recipient"):
        assert 7.9 < said(hidden, adversary)["epsilon"] <= 8.0
        assert f"at least {CLIENTS} clients" in said(hidden, adversary)["assumes"]
    open_ = level("distributed").bind(facts())
    exact = epsilon([((1.0, open_.noise_multiplier / math.sqrt(CLIENTS)), ROUNDS)], DELTA)
    operator = said(open_, "server_operator")
    assert exact <= operator["epsilon"] <= exact + 1e-4, "a plaintext channel shows each share alone"
    # Four times the loss per noise: epsilon grows by more than that.
    assert operator["epsilon"] > 4 * said(open_, "model_recipient")["epsilon"]


def test_who_is_not_honest_adds_nothing_and_the_others_more():
    plan = level("distributed", honest=0.75).bind(facts(operator_reads_updates=False))
    assert plan.shares == 12
    assert plan.message_multiplier == pytest.approx(plan.noise_multiplier / math.sqrt(12))
    assert said(plan, "server_operator")["epsilon"] <= 8.0
    assert plan.noise_std(12) == pytest.approx(plan.noise_multiplier * CLIP / CLIENTS)
    assert plan.needed == CLIENTS, "who is missing may be honest"
    assert [plan.tolerates(n) for n in (0, 4, 5)] == [True, True, False]


def test_of_the_least_sum_all_may_be_there_who_are_not_honest():
    some = level("distributed", honest=0.75, present=0.75).bind(facts(dropout=0.1, operator_reads_updates=False))
    assert (some.needed, some.shares) == (12, 8)
    assert [some.tolerates(n) for n in (4, 5)] == [True, False]
    with pytest.raises(ConfigError, match="8 of 16 clients aren't counted on, and a sum has 8") as caught:
        level("distributed", honest=0.5, present=0.5).bind(facts(dropout=0.1, operator_reads_updates=False))
    assert caught.value.field == "honest"


def test_the_ledger_adds_up():
    plan = level("local").bind(facts())
    half, whole = said(plan, "server_operator", 10)["epsilon"], said(plan, "server_operator")["epsilon"]
    assert 0 < half < whole
    assert said(plan, "server_operator", 0)["epsilon"] == 0
    silent = level("local", epsilon=None, noise_multiplier=0.0).bind(facts())
    assert said(silent, "server_operator")["epsilon"] is said(silent, "model_recipient")["epsilon"] is None


@pytest.mark.parametrize("noise", ["central", "local", "distributed"])
def test_what_is_published_of_the_noise(noise):
    plan = level(noise).bind(facts())
    own = {"central": 0.0, "local": 1.0, "distributed": 0.25}[noise] * plan.noise_multiplier * CLIP
    assert plan.known("update", 0).noise_std == pytest.approx(own)
    for source in ("aggregate", "release"):
        assert plan.known(source, 0).noise_std == pytest.approx(plan.noise_std(CLIENTS))


@pytest.mark.parametrize(
    ("noise", "changes", "field"),
    [
        ("distributed", {"participation": 0.5, "sampling": "poisson"}, "participation"),
        ("distributed", {"dropout": 0.1}, "dropout"),
        ("central", {"participation": 0.5, "sampling": "fixed"}, "sampling"),
        ("local", {"clients": 1000}, "delta"),
    ],
)
def test_federations_that_contradict_it_are_refused_by_name(noise, changes, field):
    with pytest.raises(ConfigError) as caught:
        level(noise).bind(facts(**changes))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"local": ClientNoise()}, "privacy"),
        ({"local": ClientNoise(), "privacy": RecordLevel(delta=1e-5, clip=1.0, epsilon=8.0)}, "privacy"),
        ({"aggregation": FixedDenominatorMean(), "privacy": level("local")}, "local"),
        ({"local": DPSGD(), "aggregation": FixedDenominatorMean(), "privacy": level("local")}, "local"),
        ({"local": ClientNoise(), "aggregation": ClippedMean(), "privacy": level("local")}, "aggregation"),
        ({"local": ClientNoise(), "aggregation": Mean(), "privacy": level("distributed")}, "aggregation"),
        ({"local": ClientNoise(), "aggregation": CoordinateMedian(), "privacy": level("local")}, "aggregation"),
        ({"aggregation": FixedDenominatorMean()}, "aggregation"),
        (
            {"local": ClientNoise(), "aggregation": FixedDenominatorMean(), "privacy": level("central")},
            "release",
        ),
        (
            {
                "local": ClientNoise(),
                "aggregation": FixedDenominatorMean(),
                "release": CentralGaussian(),
                "privacy": level("local"),
            },
            "privacy",
        ),
    ],
)
def test_stations_that_contradict_it_are_refused_by_name(fields, field):
    with pytest.raises(ConfigError) as caught:
        Defense(**fields)
    assert caught.value.field == field


@pytest.mark.parametrize("values", [{"honest": 0.0}, {"honest": 1.5}, {"noise": "central", "honest": 0.5}])
def test_bad_shares_are_refused(values):
    with pytest.raises(ConfigError, match="honest"):
        level(values.pop("noise", "local"), **values)


def test_a_tampering_client_adds_no_noise_and_has_to_be_counted_out(federate: Callable[..., Any]):
    poisoner = Backdoor(boost=3.0)
    with pytest.raises(ConfigError, match=r"defense\.privacy\.honest"):
        federate(defense=by_clients("distributed"), poisoner=poisoner, rounds=1)
    done = federate(defense=by_clients("distributed", honest=0.8), poisoner=poisoner, rounds=1, clients=5)
    assert done.federation.plan.shares == 4
    federate(defense=by_clients("distributed"), poisoner=Backdoor(), rounds=1)  # changes its data alone: noised too


@pytest.mark.parametrize("noise", ["local", "distributed"])
def test_a_federations_noise_is_what_theory_says(federate: Callable[..., Any], task, noise):
    from privbench.benchmarks.tasks.models.architecture import make
    from privbench.benchmarks.tasks.models.dense import MLP

    options = {"model": make(MLP(hidden=(64,)), task.spec, 0), "clients": 10, "rounds": 1}
    noised = federate(defense=by_clients(noise, epsilon=None, noise_multiplier=2.0), **options)
    silent = federate(defense=by_clients(noise, epsilon=None, noise_multiplier=0.0), **options)
    drawn = noised.model - silent.model
    std = 2.0 * CLIP / {"local": math.sqrt(10), "distributed": 10}[noise]
    assert float(drawn.std()) == pytest.approx(std, rel=5 / math.sqrt(2 * len(drawn)))


def test_through_the_attested_channel_the_model_is_the_same(federate: Callable[..., Any]):
    plain = federate(defense=by_clients("distributed"))
    sealed = federate(defense=by_clients("distributed", Attested()))
    assert all(torch.equal(a, b) for a, b in zip(plain.models, sealed.models, strict=True))
    said = {s["adversary"]: s["epsilon"] for s in sealed.federation.plan.statements(sealed.rounds[-1].state.ledger)}
    assert set(said) == {"server_operator", "model_recipient"}
    assert all(7.9 < value <= 8.0 for value in said.values())


def test_an_attested_aggregator_adds_central_noise_bit_for_bit(federate: Callable[..., Any]):
    stations = {"aggregation": ClippedMean(), "release": CentralGaussian(), "privacy": level("central")}
    plain, sealed = (federate(defense=Defense(channel=c, **stations)) for c in (Plaintext(), Attested()))
    assert all(torch.equal(a, b) for a, b in zip(plain.models, sealed.models, strict=True))


def test_a_sum_without_all_shares_is_not_let_out():
    plan = level("distributed").bind(facts())
    assert Attested().least(private=True, sampled=False, needed=plan.needed) == CLIENTS
    with pytest.raises(ConfigError, match="least_cohort"):
        Attested(least_cohort=3).least(private=True, sampled=False, needed=plan.needed)


def test_a_fixed_denominator_is_the_expected_cohort(context, updates):
    vectors = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    mean = FixedDenominatorMean().combine(updates(vectors), {}, context(3, expected=4.0))
    assert mean.vector.tolist() == [1.0, 1.0, 1.0]
    assert FixedDenominatorMean().combine([], {}, context(3, expected=4.0)).vector.tolist() == [0.0, 0.0, 0.0]
    extra = [replace(u, extras={"clipped": torch.ones(1)}) for u in updates(vectors)]
    extras = FixedDenominatorMean().combine(extra, {}, context(3)).extras
    assert [*extras] == ["screened"], "clients' own aren't summed"
    assert extras["screened"].numel() == 0
