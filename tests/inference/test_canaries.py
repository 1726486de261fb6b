import math
from typing import Any

import pytest
import torch

from privbench.attacks.inference import Canaries
from privbench.attacks.inference.canaries import Planted
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.tasks.task import Split

TRAIN = Split(torch.randn(60, 4), torch.arange(60) % 3)


def planted(unit: Any = "record", seed: int = 0, **fields: Any) -> Planted:
    return Canaries(**{"count": 50, **fields}).plant(unit, 4, 80, TRAIN, 3, seed)


def test_coins_are_fair_and_each_seed_has_its_own():
    coins = torch.stack([Canaries(count=80).plant("record", 4, 80, TRAIN, 3, seed).included for seed in range(60)])
    assert float(coins.double().mean()) == pytest.approx(0.5, abs=0.03)
    assert len({tuple(c.tolist()) for c in coins}) == 60
    assert torch.equal(planted().included, planted().included)


def test_coins_do_not_depend_on_what_the_canaries_are():
    assert torch.equal(planted().included, planted(form="record").included)


def test_directions_are_orthogonal_unit_vectors():
    p = planted("client")
    own = [p.of(int(client)) for client in p.owner]
    vectors = torch.stack([o.direction(torch.tensor([0]), 80) for o in own])
    out = torch.tensor([not bool(o.included[0]) for o in own])
    assert not vectors[out].any()
    assert torch.equal(vectors[~out] @ vectors[~out].T, torch.eye(int((~out).sum())))


def test_records_belong_to_clients_in_turn_and_client_canaries_come_after_them():
    assert planted().owner[:6].tolist() == [0, 1, 2, 3, 0, 1]
    assert planted().extra == 0
    clients = planted("client")
    assert (clients.owner[0], clients.extra) == (4, 50)


def test_enrolled_records_do_not_tell_the_coins():
    p = planted()
    assert [p.enrolled(10, c) for c in range(4)] == [23, 23, 22, 22]
    assert planted("client").enrolled(10, 0) == 10


@pytest.mark.parametrize("form", ["gradient", "record"])
def test_a_batch_is_parted_into_records_and_canaries_that_are_in(form):
    own = planted(form=form).of(1)
    there, gone = (torch.nonzero(own.included == value).squeeze(1)[0] for value in (True, False))
    index = torch.tensor([3, 20 + int(there), 7, 20 + int(gone)])
    kept, drawn = own.parted(index, 20)
    if form == "gradient":
        assert (kept.tolist(), drawn.tolist()) == ([3, 7], [int(there)])
        assert own.direction(drawn, 80).abs().sum() == 1
    else:
        assert (kept.tolist(), drawn.tolist()) == ([3, 20 + int(there), 7], [])


def test_canary_records_are_copies_under_another_label():
    p = planted(form="record")
    assert p.records is not None
    assert torch.equal(p.records.x, TRAIN.x[p.entries])
    assert (p.records.y != TRAIN.y[p.entries]).all()
    assert set(p.records.y.tolist()) <= {0, 1, 2}
    joined = p.of(0).joined(TRAIN.take(torch.arange(5)))
    assert len(joined) == 5 + 13


@pytest.mark.parametrize(
    ("fields", "field", "hint"),
    [
        ({"count": 1}, "count", "at least 2"),
        ({"length": 0.5}, "length", "from 1, the clip"),
        ({"length": math.inf}, "length", "to 1e"),
        ({"count": 81}, "count", "at most 80, the parameters"),
        ({"count": 61, "form": "record"}, "count", "at most 60, the training records"),
    ],
)
def test_what_cannot_be_planted_is_refused(fields, field, hint):
    with pytest.raises(ConfigError, match=hint) as caught:
        planted(**fields)
    assert caught.value.field == field
