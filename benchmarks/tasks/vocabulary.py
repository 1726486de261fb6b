"""Words as numbers."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from privbench.benchmarks.build import require

_WORD = re.compile(r"[^\W_]+")


class Vocabulary:
    """The most frequent words of some captions, numbered from 1; equally frequent ones by the alphabet.

    Args:
        captions: those trained on, and no others.
        limit: words at most.
    """

    def __init__(self, captions: Iterable[str], limit: int):
        counts = Counter(word for caption in captions for word in words(caption))
        ordered = sorted(counts, key=lambda word: (-counts[word], word))
        self.numbers = {word: number for number, word in enumerate(ordered[:limit], start=1)}

    def __len__(self) -> int:
        return len(self.numbers)

    def encode(self, captions: Sequence[str], length: int) -> Tensor:
        """Numbers of the first ``length`` known words of each caption, ``(captions, length)`` int64, padded with 0.

        Words outside the vocabulary are left out.
        """
        encoded = torch.zeros(len(captions), length, dtype=torch.int64)
        for row, caption in zip(encoded, captions, strict=True):
            known = [self.numbers[word] for word in words(caption) if word in self.numbers][:length]
            row[: len(known)] = torch.tensor(known, dtype=torch.int64)
        return encoded


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits."""
    return _WORD.findall(text.lower())


def filled(templates: Sequence[str], name: str) -> list[str]:
    """Each template with ``name`` in place of ``{}``."""
    return [template.replace("{}", name) for template in templates]


def check_templates(field: str, templates: Sequence[str], least: int = 1) -> None:
    """Refuse templates without a place for the class.

    Raises:
        ConfigError: for ``field``.
    """
    require(len(templates) >= least, field, templates, f"at least {least}")
    for template in templates:
        require(template.count("{}") == 1, field, template, "one {} in the place of the class")


def encode_prompts(vocabulary: Vocabulary, prompts: Sequence[str], names: Sequence[str], length: int) -> Tensor:
    """Prompts of every class, ``(classes, prompts, length)`` int64.

    Raises:
        ConfigError: for ``task.source.classes``, if a class is told by no word that was trained on.
    """
    for name in names:
        known = any(word in vocabulary.numbers for word in words(name))
        require(known, "task.source.classes", name, "a class with a word in the vocabulary, or a larger vocabulary")
    return torch.stack([vocabulary.encode(filled(prompts, name), length) for name in names])
