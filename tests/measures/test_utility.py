"""Utility against scikit-learn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from privbench.benchmarks.measures import utility


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), levels=st.integers(1, 6))
def test_auc_with_ties_is_scikit_learns(seed, levels):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (40,), generator=generator).double()
    positive = torch.cat([torch.tensor([True, False]), torch.rand(38, generator=generator) < 0.3])
    expected = roc_auc_score(positive.numpy(), scores.numpy())
    assert utility.auc(positive, scores) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_classification_is_scikit_learns(classes):
    generator = torch.Generator().manual_seed(classes)
    labels = torch.cat([torch.arange(classes), torch.randint(classes, (200,), generator=generator)])
    logits = torch.randn(len(labels), classes, generator=generator)
    measured = utility.classification(labels, logits)
    scores = logits.double().softmax(1).numpy()
    area = roc_auc_score(labels, scores[:, 1] if classes == 2 else scores, multi_class="ovr", average="macro")
    assert measured["auc"] == pytest.approx(area, abs=1e-12)
    assert measured["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, logits.argmax(1)))
    assert measured["accuracy"] == (labels == logits.argmax(1)).double().mean().item()
    assert measured["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_confident_predictions_keep_their_order():
    """Both probabilities are 1.0, even in float64, and a tie would give 0.5."""
    assert utility.macro_auc(torch.tensor([0, 1]), torch.tensor([[0.0, 50.0], [0.0, 60.0]])) == 1.0


def test_a_missing_class_leaves_metrics_out():
    measured = utility.classification(torch.tensor([0, 0, 2]), torch.randn(3, 3))
    assert set(measured) == {"accuracy", "loss"}


def test_scores_that_are_not_numbers_have_no_auc():
    assert utility.auc(torch.tensor([True, False]), torch.tensor([float("nan"), 0.0])) is None
