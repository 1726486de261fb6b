"""What an attack has to beat: guesses of a client's records that nothing of its update went into."""

import torch
from torch import Tensor

from privbench.benchmarks.federation.view import Public
from privbench.benchmarks.measures import images
from privbench.benchmarks.measures.comparison import Arrays, Records, comparable, is_image, label_accuracy, of_label


def guesses(
    public: Public,
    truth: Records,
    distractors: Records | None,
    peers: Records | None,
    count: int,
    strangers: Records | None = None,
) -> dict[str, Tensor]:
    """Each guess by name, ``(n, *shape)`` in the space of comparison and in the order of the truth.

    Of images those of :func:`.images.baselines`; of signals and tables ``mean``, the training mean, and
    ``other_record``, which is their ``other_image``. Of all ``class_mean``: the mean of other clients' records of the
    true label, what public data of the class would tell; where nobody else has one, the mean of the distractors.

    Args:
        distractors: records of other clients.
        peers: such records by label, for ``class_mean``; ``None``: the distractors.
        count: how many other records are matched to the truth, as that many reconstructions are: distractors, then
            strangers. Where there are fewer than true records, they are used again.
        strangers: further records of other clients.
    """
    original = comparable(public, truth.x)
    others = None if distractors is None else comparable(public, _others(distractors, strangers, count, len(original)))
    if is_image(public):
        found = images.baselines(original, others)
    else:
        found = {"mean": torch.zeros_like(original)}
        if others is not None and len(others):
            found["other_record"] = images.aligned(others, original, 0.0)
    if others is not None and len(others):
        known = distractors if peers is None else peers
        means = {int(c): _mean(public, of_label(known, c), distractors) for c in truth.y.unique()}
        found["class_mean"] = torch.stack([means[int(c)] for c in truth.y])
    return found


def _others(distractors: Records, strangers: Records | None, count: int, least: int) -> Tensor:
    every = distractors.x if strangers is None else torch.cat([distractors.x, strangers.x])
    if 0 < len(every) < least:
        # One for each true record, lest some are compared with grey, which is another guess.
        every = every.repeat(-(-least // len(every)), *[1] * (every.dim() - 1))[:least]
    return every[:count]


def _mean(public: Public, own: Tensor, distractors: Records | None) -> Tensor:
    return comparable(public, own if len(own) or distractors is None else distractors.x).mean(0)


def controls(
    public: Public,
    truth: Records,
    distractors: Records | None,
    peers: Records | None,
    count: int,
    strangers: Records | None = None,
) -> tuple[dict[str, float], Arrays]:
    """The guesses' values and, for pictures of them, arrays ``guess_<name>`` of those that differ between records.

    ``label_accuracy_majority`` is that of always guessing the class that most of the distractors have.
    """
    original = comparable(public, truth.x)
    values: dict[str, float] = {}
    arrays: Arrays = {}
    for name, x in guesses(public, truth, distractors, peers, count, strangers).items():
        if is_image(public):
            values[f"psnr_db_{name}"] = float(images.psnr(x, original).mean())
            values[f"ssim_{name}"] = float(images.ssim(x, original).mean())
        else:
            values[f"mse_{name}"] = float(images.mse(x, original).mean())
        if name in ("mosaic", "other_image", "other_record", "class_mean"):
            arrays[f"guess_{name}"] = x.numpy()
    if distractors is not None and len(distractors.y):
        most = torch.bincount(distractors.y).argmax()
        values["label_accuracy_majority"] = label_accuracy(most.expand_as(truth.y), truth.y)
    return values, arrays
