"""How well a classifier does its job. A metric that isn't defined on the data is left out, never NaN."""

import torch
from torch import Tensor
from torch.nn import functional as F


def accuracy(labels: Tensor, predicted: Tensor) -> float:
    """Share of records, ``(n,)`` each, whose label is predicted, in [0, 1]."""
    return (labels == predicted).double().mean().item()


def balanced_accuracy(labels: Tensor, predicted: Tensor, classes: int) -> float | None:
    """Mean over classes of the share found of each, in [0, 1]; ``None`` if a class has no record.

    Args:
        labels, predicted: ``(n,)`` int64.
        classes: number of classes.
    """
    counts = torch.bincount(labels, minlength=classes)
    if (counts == 0).any():
        return None
    found = torch.bincount(labels[labels == predicted], minlength=classes)
    return (found.double() / counts).mean().item()


def auc(positive: Tensor, scores: Tensor) -> float | None:
    """Area under the ROC curve by the Mann-Whitney statistic; tied scores count half.

    Args:
        positive: ``(n,)`` bool.
        scores: ``(n,)``, higher means more likely positive.

    Returns:
        A value in [0, 1]; ``None`` if one side has no record, or a score is not a number.
    """
    yes = int(positive.sum())
    no = len(positive) - yes
    if yes == 0 or no == 0 or scores.isnan().any():
        return None
    _, place, ties = torch.unique(scores, return_inverse=True, return_counts=True)
    midrank = ties.cumsum(0).double() - (ties.double() - 1) / 2
    return ((midrank[place][positive].sum() - yes * (yes + 1) / 2) / (yes * no)).item()


def macro_auc(labels: Tensor, logits: Tensor) -> float | None:
    """AUC of class 1 for two classes, else the mean over classes of one against the rest.

    Args:
        labels: ``(n,)`` int64.
        logits: ``(n, classes)``.

    Returns:
        A value in [0, 1]; ``None`` if a class has no record.
    """
    classes = [1] if logits.shape[1] == 2 else range(logits.shape[1])
    areas = [auc(labels == c, _log_odds(logits.double(), c)) for c in classes]
    known = [a for a in areas if a is not None]
    return sum(known) / len(known) if len(known) == len(areas) else None


def _log_odds(logits: Tensor, label: int) -> Tensor:
    """Ranks records as the probability of ``label`` does, but confident ones stay distinct instead of tying at 1."""
    others = logits.clone()
    others[:, label] = -torch.inf
    return logits[:, label] - others.logsumexp(1)


def classification(labels: Tensor, logits: Tensor) -> dict[str, float]:
    """Accuracy, balanced accuracy, AUC and mean cross entropy (nats), those that are defined.

    Args:
        labels: ``(n,)`` int64.
        logits: ``(n, classes)``.
    """
    predicted = logits.argmax(1)
    measured = {
        "accuracy": accuracy(labels, predicted),
        "balanced_accuracy": balanced_accuracy(labels, predicted, logits.shape[1]),
        "auc": macro_auc(labels, logits),
        "loss": F.cross_entropy(logits.double(), labels).item(),
    }
    return {name: value for name, value in measured.items() if value is not None}
