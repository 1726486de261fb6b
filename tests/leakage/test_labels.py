import pytest
import torch
from torch import nn

from privbench.attacks.leakage.attack import AttackFailed
from privbench.attacks.leakage.labels import by_row_sums, fixed_labels, infer, round_counts, shrinkage
from privbench.benchmarks.federation.view import Known
from privbench.benchmarks.tasks.task import Split


def convnet(bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(1, 8, 5, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 196, 32), nn.ReLU())
    return nn.Sequential(*features, nn.Linear(32, 10, bias=bias))


@pytest.mark.golden
@pytest.mark.parametrize("records", [1, 4, 16, 64])
def test_counts_from_the_bias_are_exact_with_duplicates(scene, generator, records):
    s = scene(convnet(), records)
    found = infer(s.public, s.observation(), generator)
    assert found.tolist() == sorted(s.truth.y.tolist())
    if records >= 16:
        assert len(set(found.tolist())) < records


@pytest.mark.parametrize("records", [1, 4, 16])
def test_a_clipped_gradient_still_shows_its_labels(scene, generator, records):
    s = scene(convnet(), records, known=lambda source, client: Known(clip=0.01))
    clipped = s.update(0.01 * s.gradient / s.gradient.norm())
    found = infer(s.public, s.observation(s.view(updates={0: clipped})), generator)
    assert found.tolist() == sorted(s.truth.y.tolist())


def test_all_records_of_one_class(scene, generator, digits):
    sevens = digits.take((digits.y == 7).nonzero().flatten()[:5])
    s = scene(convnet(), sevens)
    assert infer(s.public, s.observation(), generator).tolist() == [7] * 5


def test_without_bias_the_row_sums_decide(scene, generator, digits):
    for k in range(5):
        one = Split(digits.x[k : k + 1], digits.y[k : k + 1])
        s = scene(convnet(bias=False), one)
        assert infer(s.public, s.observation(), generator).tolist() == one.y.tolist()


def test_row_sums_of_a_batch():
    sums = torch.tensor([-2.0, -1.0, 0.2, 0.3])  # two records of class 0 and one of class 1
    assert by_row_sums(sums, 3).tolist() == [0, 0, 1]


def test_a_model_that_is_one_layer(scene, generator, digits):
    flat = Split(digits.x[:3].flatten(1), torch.tensor([2, 2, 7]))
    s = scene(nn.Linear(784, 10), flat)
    assert infer(s.public, s.observation(), generator).tolist() == [2, 2, 7]


def test_noise_that_leaves_no_expected_count_still_has_labels(scene, generator):
    """Two classes of which both slopes are positive, as noise makes them: expected counts are all negative."""
    counts = round_counts(torch.tensor([-3.0, -1.0]), 9)
    assert counts.tolist() == [4, 5]
    assert round_counts(torch.tensor([-30.0, -1.0]), 9).tolist() == [0, 9]
    assert 1e-4 <= float(shrinkage(torch.tensor([0.5, 0.5]), torch.tensor([0.2, 0.1]), 9)) <= 1.0


def test_round_counts():
    assert round_counts(torch.tensor([1.9, -0.2, 0.6, 1.4]), 4).tolist() == [2, 0, 1, 1]


def test_known_labels_must_cover_the_records(scene, generator):
    s = scene(records=2)
    seen = s.observation()
    with pytest.raises(AttackFailed, match="cover 0 of 2"):
        fixed_labels("known", s.public, seen, generator)


def test_no_layer_per_class(scene, generator):
    s = scene(nn.Sequential(nn.Conv2d(1, 10, 28), nn.Flatten()))
    with pytest.raises(AttackFailed, match="no trained linear layer has 10 outputs"):
        infer(s.public, s.observation(), generator)
