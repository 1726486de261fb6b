"""Labels from the last layer's gradient, before any record is reconstructed."""

from typing import Literal

import torch
from torch import Tensor, nn

from privbench.attacks.leakage.attack import AttackFailed
from privbench.attacks.leakage.first_layer import trained_parts
from privbench.attacks.leakage.gradient import ClientGradient
from privbench.attacks.leakage.observe import Observation
from privbench.benchmarks.federation.view import Public

Labels = Literal["inferred", "joint", "known"]

DUMMIES = 64
"""Random inputs over which the model's mean prediction is estimated."""


def needs(labels: Labels) -> frozenset[str]:
    """Side information for a way to come by labels."""
    return frozenset({"batch_size", "labels"} if labels == "known" else {"batch_size"})


def fixed_labels(labels: Labels, public: Public, observation: Observation, generator: torch.Generator) -> Tensor | None:
    """``(records,)`` int64, or ``None`` where labels are optimised jointly.

    Raises:
        AttackFailed: if known labels aren't there or don't cover the records.
    """
    if labels == "joint":
        return None
    if labels == "inferred":
        return infer(public, observation, generator)
    if observation.labels is None or len(observation.labels) != observation.records:
        covered = 0 if observation.labels is None else len(observation.labels)
        raise AttackFailed(f"labels=known, but they cover {covered} of {observation.records} records")
    return observation.labels


def infer(public: Public, observation: Observation, generator: torch.Generator) -> Tensor:
    """``(records,)`` int64 in ascending order: what the last linear layer's gradient says about the labels.

    With a bias, its gradient is the mean of ``p(x_i)_c - [y_i = c]`` for softmax cross-entropy, so that class c has
    ``records * (mean p_c - gradient_c)`` records; the mean prediction is taken over random inputs. Of a single record
    the label is the one negative entry. Under a published clip, and in a release of several clients, the gradient's
    length is lost and estimated first (:func:`shrinkage`). Without a bias, row sums of the weight's gradient are used,
    whose sign gives the label of a single record (iDLG, Zhao et al. 2020) and, corrected by the mean impact of a
    record, those of a batch (LLG, Wainakh et al. 2021); that needs features that aren't negative, as after a ReLU or
    a sigmoid.

    Raises:
        AttackFailed: if no linear layer ends in ``public.classes`` units.
    """
    prefix, bias = _last_layer(public)
    slopes = trained_parts(public.layout, observation.gradient)
    if bias and observation.records == 1:
        return slopes[f"{prefix}bias"].argmin()[None]
    if bias:
        dummies = torch.randn(DUMMIES, *public.shape, generator=generator).to(observation.gradient.device)
        predicted = ClientGradient(public, observation.model).logits(dummies).softmax(-1).mean(0)
        slope = slopes[f"{prefix}bias"]
        mixed = observation.source in ("release", "disaggregated") and not observation.exact
        if observation.known.clip or mixed:
            slope = slope / shrinkage(predicted, slope, observation.records)
        counts = round_counts(observation.records * (predicted - slope), observation.records)
        return torch.repeat_interleave(torch.arange(public.classes, device=counts.device), counts)
    return by_row_sums(slopes[f"{prefix}weight"].view(public.classes, -1).sum(1), observation.records)


def round_counts(expected: Tensor, total: int) -> Tensor:
    """Whole numbers, not negative, that sum to ``total`` and are close to ``expected`` ``(C,)``: largest remainders."""
    if not (expected > 0).any():  # noise alone: what is closest with the right sum
        expected = expected + (total - expected.sum()) / len(expected)
    expected = expected.clamp_min(0)
    expected = expected * total / expected.sum().clamp_min(torch.finfo(expected.dtype).tiny)
    counts = expected.floor().long()
    missing = total - int(counts.sum())
    counts[(expected - counts).topk(missing).indices] += 1
    return counts


def shrinkage(predicted: Tensor, slope: Tensor, total: int) -> Tensor:
    """By which factor in [1e-4, 1] a bias gradient ``(C,)`` was shortened: the one that gives the most integral counts.

    Args:
        predicted: mean prediction, ``(C,)``.
    """
    factors = torch.logspace(-4, 0, 400, device=slope.device)
    expected = [total * (predicted - slope / f) for f in factors]
    misfit = torch.stack([(e - round_counts(e, total)).abs().sum() for e in expected])
    return factors[misfit.argmin()]


def by_row_sums(sums: Tensor, total: int) -> Tensor:
    """``total`` labels, ascending, from row sums ``(C,)``: the most negative class, less one record's impact, again."""
    sums = sums.clone()
    impact = sums.clamp_max(0).sum() / total * (1 + 1 / len(sums))
    chosen = []
    for _ in range(total):
        chosen.append(sums.argmin())
        sums[chosen[-1]] -= impact
    return torch.stack(chosen).sort().values


def _last_layer(public: Public) -> tuple[str, bool]:
    """What precedes the tensors of the last linear layer with one unit a class, and whether its bias is trained."""
    trained = public.layout.names[: public.layout.parameters]
    found = [
        f"{name}." if name else ""  # a model that is one layer has no name
        for name, module in public.model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == public.classes
    ]
    found = [prefix for prefix in found if f"{prefix}weight" in trained]
    if not found:
        raise AttackFailed(f"labels can't be inferred: no trained linear layer has {public.classes} outputs")
    return found[-1], f"{found[-1]}bias" in trained
