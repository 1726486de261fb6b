"""Updates of clients that made other steps than plain SGD's."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from privbench.benchmarks.inversion import Diagnosis, DumpDiffers, invert


def trained(client, optimiser, steps, parts=1, **settings):
    """``w_after - w_before`` of PyTorch's own optimiser; batches are consecutive parts of the records."""
    model = copy.deepcopy(client.model)
    own = optimiser(model.parameters(), **settings)
    each = torch.arange(len(client.x)).tensor_split(parts)
    for k in range(steps):
        chosen = each[k % parts]
        own.zero_grad()
        F.cross_entropy(model(client.x[chosen]), client.y[chosen]).backward()
        own.step()
    return [p.detach() - q.detach() for p, q in zip(model.parameters(), client.model.parameters(), strict=True)]


def diagnosis(client, update, **given) -> Diagnosis:
    every: dict[str, Any] = {"inputs": (client.x, client.y), "settings": {"iterations": 1}, **given}
    try:
        found = invert(client.model, update, client.x.shape[1:], **every).diagnosis
    except DumpDiffers as error:
        return error.diagnosis
    assert found is not None
    return found


@pytest.mark.parametrize("parts", [1, 2])
def test_momentum_is_named(client, parts):
    update = trained(client, torch.optim.SGD, 4, parts, lr=0.1, momentum=0.9)
    known: dict[str, Any] = {"kind": "update", "learning_rate": 0.1, "batch_size": 4 // parts}
    found = diagnosis(client, update, local_steps=4, **known)
    assert [f.name for f in found.faults] == ["momentum"]
    assert found.faults[0].setting == {"momentum": 0.9}
    assert diagnosis(client, update, local_steps=4, momentum=0.9, **known).verdict == "agrees"
    found = diagnosis(client, update, **known)
    assert {k: v for f in found.faults for k, v in f.setting.items()} == {"momentum": 0.9, "local_steps": 4}
    plain = trained(client, torch.optim.SGD, 4, parts, lr=0.1)
    found = diagnosis(client, plain, local_steps=4, momentum=0.9, **known)
    assert [f.found for f in found.faults] == ["the client's SGD had no momentum"]


@pytest.mark.parametrize("steps", [1, 2])
def test_adam_is_named(client, steps):
    update = trained(client, torch.optim.Adam, steps, lr=0.003)
    found = diagnosis(client, update, kind="update", learning_rate=0.1, local_steps=steps)
    assert [f.name for f in found.faults] == ["optimiser"]
    assert "of Adam (learning rate about 0.003)" in str(found)


def test_signs_of_a_gradient_are_named(client):
    found = diagnosis(client, [g.sign() for g in client.gradient()])
    assert [f.name for f in found.faults] == ["optimiser"]
    assert "with the opposite sign" in str(found)


def test_other_optimisers_are_among_what_is_left(client):
    found = diagnosis(client, [g.sign() * g.abs().sqrt() for g in client.gradient()])
    assert found.faults == ()
    assert "momentum or an adaptive optimiser" in str(found)


def test_an_attack_unrolls_momentum(client):
    one = type(client)(client.model, client.x[:1], client.y[:1])
    update = trained(one, torch.optim.SGD, 3, lr=0.5, momentum=0.9)
    known: dict[str, Any] = {"kind": "update", "learning_rate": 0.5, "local_steps": 3, "inputs": (one.x, one.y)}
    known |= {"attack": "idlg", "settings": {"iterations": 40}}
    told = invert(one.model, update, (1, 12, 12), momentum=0.9, **known)
    untold = invert(one.model, update, (1, 12, 12), force=True, **known)
    assert told.metrics["psnr_db"] > untold.metrics["psnr_db"] + 10
