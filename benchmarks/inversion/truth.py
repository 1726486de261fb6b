"""What the user knows of the records: inputs and labels, checked."""

import torch
from torch import Tensor

from privbench.benchmarks.build import ConfigError, require
from privbench.benchmarks.federation.view import Public
from privbench.benchmarks.measures.comparison import is_image
from privbench.benchmarks.tasks.task import Split

OUTSIDE = 0.05
"""By how much raw pixels may leave [0, 1]: interpolation and rounded statistics do that."""


def make_truth(x: Tensor, y: Tensor, case_shape: tuple[int, ...], classes: int) -> Split:
    """The user's inputs, checked.

    Args:
        x: ``(B, *shape)``, or one input without the batch.
        y: ``(B,)``, one number, or one-hot rows ``(B, classes)``.

    Raises:
        ConfigError: if they don't fit the model or each other.
    """
    x = (x[None] if tuple(x.shape) == case_shape else x).to(torch.float32)
    last = "; its channels are last: use x.transpose" if _channels_last(tuple(x.shape[1:]), case_shape) else ""
    right = f"inputs of shape (records, {', '.join(map(str, case_shape))}){last}"
    require(len(x) > 0 and tuple(x.shape[1:]) == case_shape, "inputs.x", list(x.shape), right)
    require(bool(torch.isfinite(x).all()), "inputs.x", list(x.shape), "finite numbers: NaN or infinity in them")
    return Split(x, make_labels(y, len(x), classes, "inputs.y"))


def make_labels(y: Tensor, records: int, classes: int, field: str) -> Tensor:
    """``(records,)`` int64; float for a model with a single output, where they are targets.

    Raises:
        ConfigError: if they aren't that.
    """
    if y.ndim == 2 and y.shape[1] == classes > 1 and bool((y.sum(1) == 1).all()) and bool(((y == 0) | (y == 1)).all()):
        y = y.argmax(1)
    y = y.reshape(-1) if y.numel() == records else y
    require(tuple(y.shape) == (records,), field, list(y.shape), f"labels of {records} records")
    require(bool(torch.isfinite(y.to(torch.float64)).all()), field, list(y.shape), "finite labels")
    if classes == 1:
        return y.to(torch.float32)
    shown = [int(v) if float(v).is_integer() else float(v) for v in y[:8]]
    require(bool((y == y.to(torch.int64)).all()), field, shown, "whole numbers")
    y = y.to(torch.int64)
    low, high = int(y.min()), int(y.max())
    counted = "; they seem to be counted from 1" if low >= 1 and high == classes else ""
    require(low >= 0 and high < classes, field, shown, f"labels from 0 to {classes - 1}{counted}")
    return y


def _channels_last(shape: tuple[int, ...], right: tuple[int, ...]) -> bool:
    return len(right) > 1 and shape == (*right[1:], right[0])


def check_pixels(public: Public, x: Tensor) -> None:
    """Refuse images that aren't in [0, 1] before standardisation: they would be clamped, and compared as clamped.

    Raises:
        ConfigError: naming the range, and what mean and std it may come from.
    """
    if not is_image(public):
        return
    raw = x * public.std + public.mean
    low, high = float(raw.min()), float(raw.max())
    if low >= -OUTSIDE and high <= 1 + OUTSIDE:
        return
    share = float(((raw < 0) | (raw > 1)).double().mean())
    own = f"std={1 / 255:.4f} for pixels up to 255, or" if low >= 0 and 1 < high <= 255 else "give"
    right = (
        f"raw pixels in [0, 1]: x * std + mean is {low:.3g} to {high:.3g}, {share:.0%} of it outside; {own} the mean "
        "and std with which the inputs were standardised"
    )
    raise ConfigError("inputs.x", list(x.shape), right)


def check_labels(known: Tensor, truth: Split) -> None:
    """Refuse labels that are told to the attack and contradict those of the inputs.

    Raises:
        ConfigError: naming them.
    """
    same = torch.equal(known.sort().values, truth.y.to(known).sort().values)
    right = f"those of inputs.y, {truth.y.tolist()}, in any order"
    require(same, "labels", known.tolist(), right)
