"""Captions for a data set that has classes and none."""

from dataclasses import dataclass, replace

import torch

from privbench.benchmarks.build import require
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.tasks.pairs import Pairs, PairSpec, pack
from privbench.benchmarks.tasks.task import Data, Source, Split
from privbench.benchmarks.tasks.vocabulary import Vocabulary, check_templates, encode_prompts, filled, words


@dataclass(frozen=True)
class Templated:
    """Pictures of another source, each with a caption from a template that was drawn for it.

    Args:
        source: a data set of images.
        templates: captions with ``{}`` in the place of the class; training pairs have these.
        prompts: others, for zero-shot classification alone.
        classes: the word for each class; empty for the source's own names.
    """

    source: Source
    templates: tuple[str, ...]
    prompts: tuple[str, ...]
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_templates("templates", self.templates)
        check_templates("prompts", self.prompts)
        trained = {tuple(words(t)) for t in self.templates}
        for prompt in self.prompts:
            require(tuple(words(prompt)) not in trained, "prompts", prompt, "prompts that aren't trained on")

    def load(self, data_dir: str | None) -> Pairs:
        """Templates are drawn from one stream whatever the run's seed: all seeds train on the same data set."""
        data = self.source.load(data_dir)
        require(data.spec.domain == "image", "task.source.source", type(self.source).__name__, "a set of images")
        names = self.classes or data.spec.classes
        count = len(data.spec.classes)
        require(len(names) == count, "task.source.classes", self.classes, f"{count} words, one a class")
        written = [filled(self.templates, name) for name in names]
        vocabulary = Vocabulary((caption for own in written for caption in own), limit=2**20)
        length = max(len(words(c)) for c in (*self.templates, *self.prompts)) + max(len(words(n)) for n in names)
        captions = torch.stack([vocabulary.encode(own, length) for own in written])
        train = data.train
        drawn = torch.randint(len(self.templates), (len(train),), generator=stream(0, "captions"))
        spec = PairSpec(replace(data.spec, classes=names), length, len(vocabulary))
        # Zero-shot classification reads no caption of a test record, so they have none.
        none = torch.zeros(len(data.test), length, dtype=torch.int64)
        pairs = Data(
            Split(pack(train.x, captions[train.y, drawn]), train.y, train.group),
            Split(pack(data.test.x, none), data.test.y, data.test.group),
            spec,
        )
        return Pairs(pairs, encode_prompts(vocabulary, self.prompts, names, length), tuple(captions))
