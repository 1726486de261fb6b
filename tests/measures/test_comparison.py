from types import SimpleNamespace

import pytest
import torch

from privbench.attacks.leakage.attack import Reconstruction
from privbench.benchmarks.measures.comparison import compare, label_accuracy
from privbench.benchmarks.tasks.task import Split

FLAT = SimpleNamespace(shape=(3,))


def same_label(found, labels, peers):
    """The reconstructions ``found`` of records at the origin, against ``peers``."""
    truth = Split(torch.zeros(len(labels), 3), torch.tensor(labels))
    got = Reconstruction(found, torch.zeros(len(found), dtype=torch.int64), 0.0, 0, (0.0,), found[None])
    values, _ = compare(FLAT, got, truth, peers=peers)  # pyright: ignore[reportArgumentType]
    return values["mse_same_label"]


def test_label_accuracy_is_of_multisets():
    assert label_accuracy(torch.tensor([1, 0, 1]), torch.tensor([1, 1, 2])) == pytest.approx(2 / 3)
    assert label_accuracy(torch.tensor([0]), torch.tensor([0, 0])) == 0.5


def test_all_reconstructions_are_matched_to_other_records_of_the_label():
    """The one that is nearest to the truth alone would be as far as it happens to be."""
    found = torch.tensor([[0.0], [1.0], [4.0]]).expand(3, 3)
    peers = Split(torch.tensor([[1.0], [5.0], [0.0]]).expand(3, 3), torch.tensor([7, 7, 2]))
    assert same_label(found[:1], [7], peers) == pytest.approx((1 + 25) / 2)
    assert same_label(found, [7], peers) == pytest.approx((0 + 1) / 2)


def test_batches_of_other_records_have_the_labels_of_the_truth():
    found = torch.tensor([[1.0], [4.0]]).expand(2, 3)
    peers = Split(torch.tensor([[1.0], [5.0], [3.0], [0.0]]).expand(4, 3), torch.tensor([7, 7, 7, 2]))
    # 7 and 7: 1 with 5, then 3 with 1 again; 7 and 2: each of the three with 0.
    assert same_label(found, [7, 7], peers) == pytest.approx(((0 + 1) / 2 + (1 + 0) / 2) / 2)
    assert same_label(found, [7, 2], peers) == pytest.approx((((3**2 + 1) + (1 + 1) + (1 + 1)) / 2) / 3)


def test_a_batch_that_is_too_large_is_compared_with_the_fill():
    peers = Split(torch.ones(1, 3), torch.tensor([7]))
    assert same_label(torch.ones(1, 3), [7, 7], peers) == pytest.approx((0 + 1) / 2)
