import io
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from privbench.benchmarks.federation.update import PIECE, Layout, Update, length

SHAPES = st.lists(st.lists(st.integers(1, 4), max_size=4).map(tuple), min_size=1, max_size=5).map(tuple)


def batchnorm() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 10))


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(0, 1 << 20))
def test_flatten_inverts_views(shapes, seed):
    names = tuple(f"t{i}" for i in range(len(shapes)))
    layout = Layout(names, shapes, len(shapes) // 2)
    vector = torch.randn(layout.size, generator=torch.Generator().manual_seed(seed))
    views = layout.views(vector)
    assert [tuple(v.shape) for v in views.values()] == list(shapes)
    assert torch.equal(layout.flatten(views), vector)
    assert 0 <= layout.trainable <= layout.size
    views[names[-1]].fill_(7.0)
    assert vector[-1] == 7, "views share the vector's memory"


def test_vector_of_another_length_is_refused():
    with pytest.raises((RuntimeError, ValueError)):
        Layout(("a",), ((3,),), 1).views(torch.zeros(4))


def test_parameters_come_first_and_write_inverts_read():
    model = batchnorm()
    layout = Layout.of(model)
    assert layout.names[: layout.parameters] == tuple(n for n, _ in model.named_parameters())
    assert set(layout.names[layout.parameters :]) == {"1.running_mean", "1.running_var"}
    assert layout.trainable == sum(p.numel() for p in model.parameters())
    assert layout.buffers == layout.names[layout.parameters :]
    vector = layout.read(model)
    other = batchnorm()
    layout.write(vector, other)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_read_is_a_copy():
    model = nn.Linear(2, 1)
    vector = Layout.of(model).read(model)
    vector.fill_(9.0)
    assert not (model.weight == 9).any()


def test_integer_buffers_neither_travel_nor_change():
    model = batchnorm()
    layout = Layout.of(model)
    model.state_dict()["1.num_batches_tracked"].fill_(4)
    layout.write(torch.zeros(layout.size), model)
    assert int(model.state_dict()["1.num_batches_tracked"]) == 4


def test_frozen_parameters_do_not_travel():
    frozen = nn.Linear(3, 3).requires_grad_(False)
    model = nn.Sequential(frozen, nn.Linear(3, 1))
    layout = Layout.of(model)
    assert layout.names == ("1.weight", "1.bias")
    before = frozen.weight.clone()
    layout.write(torch.zeros(layout.size), model)
    assert torch.equal(frozen.weight, before)


def test_tied_parameters_travel_once():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    assert Layout.of(model).size == 9


def test_update_survives_pickle_and_torch_save():
    layout = Layout(("w",), ((2, 3),), 1)
    update = Update(torch.arange(6.0), layout, "gradient", 4, {"seen": torch.tensor(2.0)})
    buffer = io.BytesIO()
    torch.save(update, buffer)
    buffer.seek(0)
    for back in (pickle.loads(pickle.dumps(update, 5)), torch.load(buffer, weights_only=False)):
        assert torch.equal(back.vector, update.vector)
        assert (back.layout, back.kind, back.records) == (layout, "gradient", 4)
        assert torch.equal(back.extras["seen"], update.extras["seen"])
        back.vector.add_(1)  # it owns its memory
    assert torch.equal(update.vector, torch.arange(6.0))


def test_pickle_of_a_row_does_not_carry_its_matrix():
    row = torch.zeros(1000, 10)[3]
    update = Update(row, Layout(("w",), ((10,),), 1), "update", 1)
    assert len(pickle.dumps(update, 5)) < 1000


@pytest.mark.parametrize("size", [0, 1, PIECE, 2 * PIECE + 3])
def test_a_length_is_that_of_the_whole_vector(size):
    vector = torch.randn(size, generator=torch.Generator().manual_seed(0))
    assert length(vector) == pytest.approx(float(np.linalg.norm(vector.numpy().astype(np.float64))), rel=1e-12)


def test_a_length_that_is_no_number_says_so():
    assert math.isnan(length(torch.tensor([1.0, math.nan])))
    assert length(torch.tensor([1.0, math.inf])) == math.inf
    assert length(torch.full((4,), 3e38)) == pytest.approx(6e38), "whose square a float32 can't hold"
