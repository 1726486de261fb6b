"""Partitions cover each record once, can be repeated, and leave nobody empty."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.tasks.partition import IID, Dirichlet, Natural, Pathological, Quantity

PARTITIONS = [
    IID(),
    Dirichlet(0.01),
    Dirichlet(1.0, min_records=3),
    Dirichlet(1000.0),
    Pathological(1),
    Pathological(2),
    Quantity(),
    Quantity(sizes=(1, 2)),
    Quantity(alpha=0.05),
    Quantity(alpha=1.0, min_records=2),
]


@settings(max_examples=150, deadline=None)
@given(
    partition=st.sampled_from(PARTITIONS),
    labels=st.lists(st.integers(0, 3), min_size=40, max_size=120),
    clients=st.integers(4, 10),
    seed=st.integers(0, 100),
)
def test_each_record_once_and_nobody_empty(partition, labels, clients, seed):
    y = torch.tensor([0, 1, 2, 3, *labels])
    parts = partition.split(y, None, clients, stream(seed, "partition"))
    assert len(parts) == clients
    assert sorted(torch.cat(parts).tolist()) == list(range(len(y)))
    assert all(len(p) >= getattr(partition, "min_records", 1) or i < 2 for i, p in enumerate(parts))
    assert all(len(p) for p in parts)
    assert all(p.dtype == torch.int64 for p in parts)
    again = partition.split(y, None, clients, stream(seed, "partition"))
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))


@pytest.mark.parametrize("partition", [p for p in PARTITIONS if p != Quantity()], ids=str)
def test_seeds_differ(partition):
    y = torch.arange(200) % 4
    one, other = (partition.split(y, None, 5, stream(seed, "partition")) for seed in (0, 1))
    assert any(a.tolist() != b.tolist() for a, b in zip(one, other, strict=True))


@given(k=st.integers(1, 5), clients=st.integers(5, 12), seed=st.integers(0, 50))
@settings(max_examples=50, deadline=None)
def test_pathological_clients_hold_few_classes(k, clients, seed):
    y = torch.arange(500) % 5
    parts = Pathological(k).split(y, None, clients, stream(seed, "partition"))
    assert all(len(y[p].unique()) == k for p in parts)


def test_pathological_gives_a_common_class_more_holders():
    y = torch.tensor([0] * 100 + [1] * 900)
    parts = Pathological(1).split(y, None, 10, stream(0, "partition"))
    assert sorted(len(p) for p in parts) == [100] * 10


def test_small_alpha_is_skewed_and_large_is_even():
    y = torch.arange(4000) % 10

    def share_of_largest_class(alpha: float) -> float:
        parts = Dirichlet(alpha).split(y, None, 5, stream(0, "partition"))
        return sum((y[p].bincount().max() / len(p)).item() for p in parts) / 5

    assert share_of_largest_class(0.05) > 0.35
    assert share_of_largest_class(1000.0) < 0.12


def test_iid_sizes_differ_by_one_at_most():
    parts = IID().split(torch.zeros(103, dtype=torch.int64), None, 10, stream(0, "partition"))
    assert sorted({len(p) for p in parts}) == [10, 11]


def test_quantity_sizes_are_exact():
    parts = Quantity(sizes=(7, 50)).split(torch.zeros(100, dtype=torch.int64), None, 5, stream(0, "partition"))
    assert [len(p) for p in parts] == [7, 50, 15, 14, 14]


def test_natural_is_one_client_a_group():
    groups = torch.tensor([5, 2, 5, 9])
    parts = Natural().split(torch.zeros(4, dtype=torch.int64), groups, 3, stream(0, "partition"))
    assert [p.tolist() for p in parts] == [[1], [0, 2], [3]]


@pytest.mark.parametrize(
    ("partition", "field"),
    [
        (Dirichlet(1.0, min_records=4), "min_records"),
        (Pathological(5), "classes_per_client"),
        (Quantity(sizes=(90, 10)), "sizes"),
        (Quantity(sizes=(1, 1, 1, 1)), "sizes"),
        (Quantity(sizes=(10, 10, 10)), "sizes"),
        (Natural(), "_target_"),
    ],
)
def test_impossible_ones_are_refused_by_field(partition, field):
    with pytest.raises(ConfigError) as error:
        partition.split(torch.arange(10) % 4, None, 3, stream(0, "partition"))
    assert error.value.field == field


@pytest.mark.parametrize(
    "make",
    [
        lambda: Dirichlet(0.0),
        lambda: Dirichlet(1.0, min_records=0),
        lambda: Pathological(0),
        lambda: Quantity(sizes=(0,)),
        lambda: Quantity(alpha=-1.0),
        lambda: Quantity(sizes=(1,), alpha=1.0),
    ],
)
def test_bad_settings_are_refused(make):
    with pytest.raises(ConfigError):
        make()
