"""Contrastive learning of pictures and captions (CLIP, Radford et al. 2021), as Carlini and Terzis 2022 poison it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from privbench.benchmarks.build import RUNTIME, require
from privbench.benchmarks.tasks.labelled import Labelled, take_turns
from privbench.benchmarks.tasks.models.dual import Embeddings
from privbench.benchmarks.tasks.pairs import Pairs, PairSource, PairSpec, pack, pictures, unpack
from privbench.benchmarks.tasks.partition import IID, Partition
from privbench.benchmarks.tasks.task import Data, Relabel, Split
from privbench.benchmarks.tasks.triggers import Patch, Trigger
from privbench.benchmarks.tasks.triggers.on_picture import OnPicture


@dataclass(frozen=True)
class Contrastive(Labelled):
    """A task: matching captions to pictures; it is judged by zero-shot classification.

    Args:
        source: the data set of pairs.
        partition: how its training pairs are divided among clients.
        trigger: of its pictures, as for classification.
        records: use only the first so many training pairs, classes taking turns.
        data_dir: where to look for files first.
    """

    source: PairSource
    partition: Partition = field(default=IID())
    trigger: Trigger | None = field(default=Patch())
    records: int | None = None
    data_dir: str | None = field(default=None, metadata=RUNTIME)

    separable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(self.records is None or self.records > 0, "records", self.records, "at least 1, or null for all")

    @property
    def pairs(self) -> Pairs:
        """The data set, loaded once per process."""
        return _load(self.source, self.records, self.data_dir)

    @property
    def raw(self) -> Data:
        return self.pairs.data

    @property
    def data(self) -> Data:
        return self.pairs.data

    @property
    def spec(self) -> PairSpec:
        return self.pairs.spec

    @property
    def bound_trigger(self) -> Trigger | None:
        """The trigger, which changes the picture of a pair and not its caption."""
        if self.trigger is None:
            return None
        return OnPicture.of(self.trigger.bind(pictures(self.data.test, self.spec)), self.spec)

    @property
    def relabel(self) -> Relabel:
        """A caption of the new class in place of a pair's own."""
        return partial(recaptioned, captions=self.pairs.captions, shape=self.spec.picture.shape)

    @staticmethod
    def loss(model: Callable[[Tensor], Any], batch: tuple[Tensor, Tensor]) -> Tensor:
        """InfoNCE (nats) of ``batch = (x, y)``, x packed pairs; classes aren't looked at."""
        return info_nce(model(batch[0]))

    def predict(self, model: Any, x: Tensor) -> Tensor:
        """Zero-shot: the picture's similarity with the mean embedding of each class's prompts, ``(n, classes)``."""
        prompts = self.pairs.prompts.to(x.device)
        shown, _ = unpack(x, self.spec.picture.shape)
        classes = F.normalize(model.encode_text(prompts.flatten(0, 1)).unflatten(0, prompts.shape[:2]).mean(1), dim=1)
        return model.scale * model.encode_picture(shown) @ classes.T


def info_nce(found: Embeddings) -> Tensor:
    """The mean over a batch of n pairs of both cross entropies: which caption is the picture's, and the reverse.

    ``L = -1/2n sum_i [log softmax_j(s u_i v_j)_i + log softmax_j(s u_j v_i)_i]`` (Radford et al. 2021, figure 3).
    Of one pair, or of none, it is 0.
    """
    similarity = found.scale * found.picture @ found.text.T
    if len(similarity) == 0:
        return similarity.sum()
    own = torch.arange(len(similarity), device=similarity.device)
    return (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2


def recaptioned(
    records: Split, labels: Tensor, generator: torch.Generator, *, captions: tuple[Tensor, ...], shape: tuple[int, ...]
) -> Split:
    """Packed pairs with captions of other classes; those of a class take turns in a random order.

    Args:
        records: pairs, whose pictures stay.
        labels: the classes, ``(n,)`` int64.
        captions: of each class, ``(captions, words)`` int64.
        shape: of a picture.
    """
    shown, written = unpack(records.x, shape)
    for label in labels.unique().tolist():
        own = torch.nonzero(labels == label).squeeze(1)
        order = torch.randperm(len(captions[label]), generator=generator)
        written[own] = captions[label][order[torch.arange(len(own)) % len(order)]]
    return replace(records, x=pack(shown, written), y=labels)


@lru_cache(maxsize=2)
def _load(source: PairSource, records: int | None, data_dir: str | None) -> Pairs:
    pairs = source.load(data_dir)
    if records is None:
        return pairs
    train = pairs.data.train
    require(records <= len(train), "task.records", records, f"at most {len(train)}")
    return replace(pairs, data=replace(pairs.data, train=train.take(take_turns(train)[:records])))
