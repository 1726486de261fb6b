"""What an update carries and what views show of it: buffers, crafted models, published noise, collusion."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from privbench.attacks.leakage.noise import noise_share
from privbench.attacks.leakage.observe import Observation, observe
from privbench.attacks.poisoning import Backdoor
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.view import View, collude
from privbench.benchmarks.tasks.partition import Quantity
from privbench.defenses import Defense
from privbench.defenses.accounting import RecordLevel
from privbench.defenses.local import DPSGD


def batchnorm() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))


def seen_of(view: View, client: int) -> Observation:
    found = observe(view, 1, client)
    assert found is not None
    return found


def record_level(noise_multiplier: float, clip: float) -> Defense:
    return Defense(local=DPSGD(), privacy=RecordLevel(delta=1e-4, clip=clip, noise_multiplier=noise_multiplier))


def test_a_cumulative_average_counts_anew_for_every_client(federate):
    def model():
        torch.manual_seed(3)
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64, momentum=None), nn.Linear(64, 10))

    runs = [federate(model=model(), clients=4, rounds=2, workers=w) for w in (1, 2)]
    assert torch.equal(runs[0].model, runs[1].model)


@pytest.mark.parametrize("boost", ["replace", 3.0])
def test_a_scaled_update_leaves_statistics_alone(federate, boost):
    done = federate(model=batchnorm(), clients=4, rounds=2, poisoner=Backdoor(boost=boost))
    assert (done.federation.layout.views(done.model)["2.running_var"] > 0).all()


def test_a_guarantee_refuses_buffers_made_of_data(federate):
    with pytest.raises(ConfigError, match="BatchNorm"):
        federate(model=batchnorm(), clients=4, defense=record_level(1.0, 1.0))


def test_a_crafted_model_is_in_the_views_and_attacked_where_it_was_used(federate):
    class Twice:
        def craft(self, model, client):
            return model * 2 if client == 1 else model

    done = federate(clients=3, rounds=1, watched=frozenset(range(3)), distribution=Twice())
    view = done.rounds[0].views["active_operator"]
    seen = view.rounds[0]
    assert set(seen.received) == {1}
    assert torch.equal(seen_of(view, 1).model, seen.sent * 2)
    assert torch.equal(seen_of(view, 0).model, seen.sent)


def test_noise_told_to_an_attacker_is_the_noise_of_that_client(federate, task):
    uneven = replace(task, partition=Quantity(sizes=(1, 2)))
    done = federate(
        task=uneven, clients=3, rounds=1, watched=frozenset(range(3)),
        defense=record_level(1e6, 1e-6),
    )  # fmt: skip
    view = done.rounds[0].views["server_operator"]
    for client in range(3):
        seen = seen_of(view, client)
        said = seen.known.step_noise_std / seen.steps**0.5
        assert float(seen.gradient.std()) == pytest.approx(said, rel=0.1)
        assert noise_share(view.public, seen) > 0.9


def test_colluding_clients_are_subtracted_from_an_aggregate(federate):
    done = federate(clients=3, rounds=1, watched=frozenset(range(3)))
    full = done.rounds[0].views["server_operator"]
    updates = full.rounds[0].updates
    hidden = replace(full, rounds=(replace(full.rounds[0], updates={}),))
    joint = collude(hidden, {1: {0: updates[0], 2: updates[2]}})
    assert joint.adversary == "server_operator + 2 clients"
    rest = joint.rounds[0].aggregate
    assert rest is not None
    torch.testing.assert_close(rest.vector, updates[1].vector, rtol=1e-3, atol=1e-5)
    assert set(joint.rounds[0].updates) == {0, 2}


def test_a_guarantee_refuses_a_buffer_that_opacus_lets_pass(federate):
    class Peeks(nn.Linear):
        def __init__(self):
            super().__init__(64, 10)
            self.register_buffer("seen", torch.zeros(64))

        def forward(self, x):
            self.get_buffer("seen").copy_(x.flatten(1)[-1])
            return super().forward(x.flatten(1))

    with pytest.raises(ConfigError, match="seen is a buffer made of data"):
        federate(model=Peeks(), clients=4, defense=record_level(1.0, 1.0))
