import pytest
import torch

from privbench.benchmarks.measures.comparison import identification, label_accuracy


def test_label_accuracy_is_of_multisets():
    assert label_accuracy(torch.tensor([1, 0, 1]), torch.tensor([1, 1, 2])) == pytest.approx(2 / 3)
    assert label_accuracy(torch.tensor([0]), torch.tensor([0, 0])) == 0.5


def test_ranks_by_hand():
    truth, others = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.4], [1.3], [5.0]])
    found = identification(torch.tensor([[0.1], [1.2], [4.0]]), truth, others)
    # 1.2 is closer to 1.3 than to 1; 4 is closer to 5 than to 2, and farther from the two others.
    assert found["identification_rank"] == 2
    assert found["identified"] == pytest.approx(1 / 3)
    assert (found["identification_rank_chance"], found["identified_chance"]) == (2.5, 0.25)


def test_an_equal_distractor_leaves_a_record_unidentified():
    truth = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = identification(truth, truth, torch.cat([truth, 1 - truth]))
    assert (found["identification_rank"], found["identified"]) == (1.5, 0)


def test_a_lost_record_comes_last():
    truth = torch.eye(2)
    found = identification(truth, truth, torch.full((7, 2), 0.5), torch.tensor([False, True]))
    assert (found["identification_rank"], found["identified"]) == (4.5, 0.5)


def test_a_reconstruction_that_knows_nothing_is_at_chance():
    generator = torch.Generator().manual_seed(0)
    truth, blind, others = (torch.randn(n, 20, generator=generator) for n in (2000, 2000, 9))
    found = identification(blind, truth, others)
    assert found["identified"] == pytest.approx(found["identified_chance"], abs=0.03)
    assert found["identification_rank"] == pytest.approx(found["identification_rank_chance"], abs=0.5)
