import math

import pytest
import torch

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.server import ServerAdam, ServerSGD, ServerYogi
from privbench.benchmarks.federation.update import Kind, Layout, Update

LAYOUT = Layout(("w", "running_var"), ((2,), (1,)), 1)
MODEL = torch.tensor([1.0, -2.0, 5.0])


def aggregate(*values: float, kind: Kind = "update") -> Update:
    return Update(torch.tensor(values), LAYOUT, kind, 1)


def test_plain_sgd_adds_the_update():
    update = aggregate(0.5, 1.0, -0.25)
    state: dict = {}
    assert ServerSGD().step(MODEL, update, state, 0.1).tolist() == [1.5, -1.0, 4.75]
    assert state == {}
    assert update.vector.tolist() == [0.5, 1.0, -0.25], "the aggregate stays as it is"
    assert MODEL.tolist() == [1.0, -2.0, 5.0]


def test_a_gradient_is_descended_at_the_clients_rate():
    moved = ServerSGD(learning_rate=2.0).step(MODEL, aggregate(0.5, 1.0, 0.25, kind="gradient"), {}, 0.1)
    torch.testing.assert_close(moved, torch.tensor([1 - 2 * 0.1 * 0.5, -2 - 2 * 0.1 * 1.0, 5.25]))


def test_momentum_by_hand():
    optimizer, state = ServerSGD(learning_rate=0.5, momentum=0.9), {}
    model = optimizer.step(MODEL, aggregate(1.0, 0.0, 0.1), state, 1.0)
    torch.testing.assert_close(model, torch.tensor([1.5, -2.0, 5.1]))
    model = optimizer.step(model, aggregate(1.0, 2.0, 0.1), state, 1.0)
    # momentum: 0.9 * 1 + 1 = 1.9 and 2; buffers are plain differences
    torch.testing.assert_close(model, torch.tensor([1.5 + 0.5 * 1.9, -2.0 + 0.5 * 2.0, 5.2]))


@pytest.mark.parametrize("kind", ["adam", "yogi"])
def test_adaptive_by_hand(kind):
    """Reddi et al. 2021, Algorithm 2, two rounds of one coordinate."""
    eta, b1, b2, tau = 0.1, 0.9, 0.99, 0.01
    make = ServerAdam if kind == "adam" else ServerYogi
    optimizer, state = make(eta, b1, b2, tau), {}
    x, m, v, model = 1.0, 0.0, tau**2, MODEL
    for delta in (0.3, -0.2):
        m = b1 * m + (1 - b1) * delta
        if kind == "adam":
            v = b2 * v + (1 - b2) * delta**2
        else:
            v = v - (1 - b2) * delta**2 * math.copysign(1, v - delta**2)
        x += eta * m / (math.sqrt(v) + tau)
        model = optimizer.step(model, aggregate(delta, 0.0, 0.5), state, 1.0)
        assert model[0].item() == pytest.approx(x, rel=1e-5)
    assert model[1].item() == -2.0
    assert model[2].item() == pytest.approx(6.0), "a running variance is averaged, not preconditioned"


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: ServerSGD(learning_rate=0), "learning_rate"),
        (lambda: ServerSGD(momentum=1.0), "momentum"),
        (lambda: ServerAdam(beta1=1.0), "beta1"),
        (lambda: ServerAdam(beta2=-0.1), "beta2"),
        (lambda: ServerYogi(tau=0), "tau"),
        (lambda: ServerYogi(learning_rate=math.inf), "learning_rate"),
    ],
)
def test_out_of_range(make, field):
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.field == field
