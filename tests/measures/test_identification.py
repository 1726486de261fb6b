import pytest
import torch
from sklearn.datasets import load_digits

from privbench.benchmarks.measures import images
from privbench.benchmarks.measures.identification import chance, identification


def test_ranks_by_hand():
    truth, others = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.4], [1.3], [5.0]])
    # 1.2 is closer to 1.3 than to 1; 4 is closer to 5 than to 2, and farther from the two others.
    found = identification(torch.tensor([[0.1], [1.2], [4.0]]), truth, others)
    assert found == {"identification_rank": 2, "identified": pytest.approx(1 / 3)}


def test_an_equal_distractor_leaves_a_record_unidentified():
    truth = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = identification(truth, truth, torch.cat([truth, 1 - truth]))
    assert (found["identification_rank"], found["identified"]) == (1.5, 0)


def test_a_lost_record_comes_last():
    truth = torch.eye(2)
    found = identification(truth, truth, torch.full((7, 2), 0.5), torch.tensor([False, True]))
    assert (found["identification_rank"], found["identified"]) == (4.5, 0.5)


@pytest.fixture
def few_draws(monkeypatch):
    """One level at chance need not be exact where the mean of many is looked at."""
    monkeypatch.setattr("privbench.benchmarks.measures.identification.DRAWS", 8)


def unrelated(count: int, records: int, further: int) -> tuple[dict[str, float], dict[str, float]]:
    """Means of what ``count`` digits get as reconstructions of ``records`` others, and of the levels at chance."""
    x = torch.tensor(load_digits(return_X_y=True)[0] / 16, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    found, known = [], []
    for _ in range(400 // records):
        parts = (records, count, 64, further)
        truth, blind, others, more = x[torch.randperm(len(x), generator=generator)[: sum(parts)]].split(parts)
        _, j = images.match(blind, truth)
        lost = torch.ones(records, dtype=torch.bool)
        lost[j] = False
        found.append(identification(images.aligned(blind, truth, 0.5), truth, others, lost))
        known.append(chance(truth, others, more, count))
    first, second = ({k: sum(f[k] for f in each) / len(each) for k in each[0]} for each in (found, known))
    return first, second


@pytest.mark.parametrize(("count", "records"), [(8, 8), (64, 1), (72, 3), (2, 8)])
def test_what_knows_nothing_is_at_chance(count, records, few_draws):
    """Of 64 records, one is identified by the match alone in more than 40% of cases, not in 1 of 65."""
    found, known = unrelated(count, records, 256)
    assert found["identified"] == pytest.approx(known["identified_chance"], abs=0.05)
    assert found["identification_rank"] == pytest.approx(known["identification_rank_chance"], abs=1.5)
    assert (known["identified_chance"] > 0.4) == (count >= 64)


def test_one_of_one_has_the_level_that_is_known():
    found, known = unrelated(1, 1, 0)
    assert known == {"identification_rank_chance": pytest.approx(33), "identified_chance": pytest.approx(1 / 65)}
    assert found["identified"] == pytest.approx(1 / 65, abs=0.012)
    assert found["identification_rank"] == pytest.approx(33, abs=2)


@pytest.mark.parametrize(("count", "records"), [(8, 8), (64, 1)])
def test_where_there_is_nobody_else_distractors_stand_in(count, records, few_draws):
    """They are ranked among each other then, which makes the level of many somewhat too high."""
    found, known = unrelated(count, records, 0)
    assert -0.05 < known["identified_chance"] - found["identified"] < 0.12


def test_a_distractor_is_no_stranger_to_itself():
    one = torch.zeros(1, 2)
    assert chance(one, one + 1, one[:0], 3) == {}
    assert chance(one, torch.tensor([[1.0, 0], [3, 0]]), one[:0], 2)["identified_chance"] == 1


def test_ties_count_half_at_chance_too():
    """A table of one bit: the truth is as far as half of the others."""
    bits = torch.tensor([[0.0], [1.0]]).repeat(32, 1)
    known = chance(torch.zeros(1, 1), bits, bits, 64)
    assert known == {"identification_rank_chance": pytest.approx(17), "identified_chance": 0}
