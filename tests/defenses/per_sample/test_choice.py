"""Which engine is chosen, and that a run keeps to it."""

import copy

import pytest
import torch
from torch import nn

from privbench.benchmarks.build import ConfigError
from privbench.defenses.local import DPSGD
from privbench.defenses.local.per_sample import choice
from privbench.defenses.local.per_sample.choice import agrees, choose, make

from .test_engines import MODELS, UNSEEN, Loose, built, loss, units


@pytest.mark.parametrize("name", MODELS)
def test_what_agrees_with_the_loop_may_be_chosen(name):
    model, batch = built(name).float(), units(name)
    batch = type(batch)(batch.x.float(), batch.y)
    assert agrees(model, loss, "book_keeping", batch) == (name not in UNSEEN)
    assert agrees(model, loss, "vmap", batch)


def test_the_faster_by_far_is_chosen_else_the_first(monkeypatch):
    model, batch = built("dense"), units("dense")
    seconds = {"book_keeping": 1.0, "vmap": 0.6, "loop": 0.7}
    monkeypatch.setattr(choice, "_seconds", lambda engine, parts: seconds[engine.name])
    assert choose(model, loss, batch) == "book_keeping"
    seconds["vmap"] = 0.4
    assert choose(model, loss, batch) == "vmap"
    assert choose(built("loose"), loss, units("loose")) == "vmap"
    seconds["loop"] = 0.1
    assert choose(model, loss, batch) == "loop"


def test_an_engine_that_is_wrong_is_never_chosen(monkeypatch):
    class Wrong(nn.Module):
        """A layer whose module isn't called: book-keeping doesn't hear of it."""

        def __init__(self):
            super().__init__()
            self.layer, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.last(x @ self.layer.weight.t() + self.layer.bias)

    model = Wrong()
    batch = units("dense")
    batch = type(batch)(batch.x.float(), batch.y)
    assert not agrees(model, loss, "book_keeping", batch)
    monkeypatch.setattr(choice, "_seconds", lambda engine, parts: 1.0)
    assert choose(model, loss, batch) == "vmap"
    with pytest.raises(ConfigError, match="auto or loop") as caught:
        DPSGD(per_sample="book_keeping").settle(None, model, loss, batch)
    assert caught.value.field == "defense.local.per_sample"


def test_nor_is_one_that_is_named_and_sees_half_of_a_weights_use():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.last(nn.functional.linear(torch.tanh(self.layer(x)), self.layer.weight))

    batch = units("dense")
    batch = type(batch)(batch.x.float(), batch.y)
    with pytest.raises(ConfigError, match="auto or loop: its gradients"):
        DPSGD(per_sample="book_keeping").settle(None, Shared(), loss, batch)
    assert DPSGD(per_sample="vmap").settle(None, Shared(), loss, batch).chosen == "vmap"


def test_choosing_leaves_the_model_alone():
    model, batch = built("dense"), units("dense")
    before = copy.deepcopy(model.state_dict())
    choose(model, loss, batch)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_a_named_engine_that_cannot_is_an_error():
    with pytest.raises(ConfigError, match="auto, vmap or loop") as caught:
        make("book_keeping", Loose(), loss)
    assert caught.value.field == "defense.local.per_sample"


def test_a_resumed_run_goes_on_with_its_engine(monkeypatch):
    model, batch = built("dense"), units("dense")
    settled = DPSGD().settle(None, model, loss, batch)
    assert settled.chosen in choice.ENGINES
    assert DPSGD().settle("loop", model, loss, batch).chosen == "loop"
    assert DPSGD(per_sample="vmap").settle(None, model, loss, batch).chosen == "vmap"


@pytest.mark.parametrize(("field", "value"), [("per_sample", "ghosts"), ("memory", 0.0), ("memory", float("nan"))])
def test_bad_settings_are_named(field, value):
    with pytest.raises(ConfigError) as caught:
        DPSGD(**{field: value})
    assert caught.value.field == field
