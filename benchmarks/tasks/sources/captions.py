"""Pictures of a folder with a file of captions, as Conceptual Captions (CC3M) is laid out."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import torch

from privbench.benchmarks.build import ConfigError, require
from privbench.benchmarks.tasks.pairs import Pairs, PairSpec, pack
from privbench.benchmarks.tasks.sources.files import DataMissing, places
from privbench.benchmarks.tasks.sources.raw import Raw, standardise
from privbench.benchmarks.tasks.task import Data, Split
from privbench.benchmarks.tasks.vocabulary import Vocabulary, check_templates, encode_prompts, words

DISTINCT = 64
"""Captions of a class at most that a poisoner chooses among."""


@dataclass(frozen=True)
class Captions:
    """Lines ``caption<TAB>picture``: a path from the folder, or a URL, whose last part names a file of the folder.

    Nothing is fetched. A pair's class is the first of ``classes`` whose words its caption has, one after another.
    Training pairs may name none; test pairs that name none are left out, since zero-shot classification can't be right
    or wrong about them.

    Args:
        classes: what zero-shot classification tells apart.
        prompts: captions with ``{}`` in the place of the class, for zero-shot classification.
        folder: of the pictures and both files; looked for in ``data_dir``, ``$PRIVBENCH_DATA`` and the cache.
        train, test: the files.
        size: edge to which pictures are reduced: the shorter one first, then the middle of the longer is cut out.
        vocabulary: words at most, the most frequent of the training captions.
        words: of a caption at most; the rest is cut off.
    """

    classes: tuple[str, ...]
    prompts: tuple[str, ...] = ("a photo of a {}",)
    folder: str = "captions"
    train: str = "train.tsv"
    test: str = "test.tsv"
    size: int = 32
    vocabulary: int = 10_000
    words: int = 24

    def __post_init__(self) -> None:
        require(len(self.classes) >= 2, "classes", self.classes, "two classes at least")
        check_templates("prompts", self.prompts)
        require(self.size >= 8, "size", self.size, "at least 8 pixels")
        require(1 <= self.vocabulary < 2**24, "vocabulary", self.vocabulary, "from 1 to 16,777,215 words")
        require(self.words >= 1, "words", self.words, "at least 1")

    def load(self, data_dir: str | None) -> Pairs:
        folder = self._folder(data_dir)
        train, test = (list(lines(folder, name)) for name in (self.train, self.test))
        labels = np.array([self.label(caption) for caption, _ in train])
        named = [(path, label) for caption, path in test if (label := self.label(caption)) < len(self.classes)]
        require(bool(named), "task.source.test", self.test, "captions that name one of the classes")
        seen = Raw(self._read([path for _, path in train]), labels)
        unseen = Raw(self._read([path for path, _ in named]), np.array([label for _, label in named]))
        data = standardise("captions", "image", self.classes, seen, unseen, scale=255.0)
        texts = [caption for caption, _ in train]
        vocabulary = Vocabulary(texts, self.vocabulary)
        prompts = encode_prompts(vocabulary, self.prompts, self.classes, self.words)
        own = [vocabulary.encode(found, self.words) for found in self._of_classes(texts, labels)]
        spec = PairSpec(data.spec, self.words, len(vocabulary))
        none = torch.zeros(len(data.test), self.words, dtype=torch.int64)
        pairs = Data(
            Split(pack(data.train.x, vocabulary.encode(texts, self.words)), data.train.y),
            Split(pack(data.test.x, none), data.test.y),
            spec,
        )
        return Pairs(pairs, prompts, tuple(own))

    def label(self, caption: str) -> int:
        """The number of the first class that it names, else ``len(classes)``."""
        text = f" {' '.join(words(caption))} "
        found = (n for n, name in enumerate(self.classes) if f" {' '.join(words(name))} " in text)
        return next(found, len(self.classes))

    def _of_classes(self, texts: list[str], labels: np.ndarray) -> Iterator[list[str]]:
        """Distinct training captions of each class, in their order."""
        for number, name in enumerate(self.classes):
            own = [*dict.fromkeys(texts[i] for i in np.flatnonzero(labels == number))]
            require(bool(own), "task.source.classes", name, f"classes that captions in {self.train} name")
            yield own[:DISTINCT]

    def _folder(self, data_dir: str | None) -> Path:
        found = [place / self.folder for place in places(data_dir) if (place / self.folder).is_dir()]
        if not found:
            looked = ", ".join(str(place / self.folder) for place in places(data_dir))
            raise DataMissing(
                "task.source.folder", self.folder, f"a folder of pictures and captions; looked at {looked}"
            )
        return found[0]

    def _read(self, paths: list[Path]) -> np.ndarray:
        """``(n, 3, size, size)`` uint8."""
        from PIL import Image, ImageOps, UnidentifiedImageError

        pixels = np.empty((len(paths), 3, self.size, self.size), dtype=np.uint8)
        for row, path in zip(pixels, paths, strict=True):
            try:
                with Image.open(path) as picture:
                    small = ImageOps.fit(picture.convert("RGB"), (self.size, self.size), Image.Resampling.BICUBIC)
            except (OSError, UnidentifiedImageError) as error:
                raise ConfigError("task.source.folder", str(path), f"a picture that can be read ({error})") from None
            row[:] = np.asarray(small).transpose(2, 0, 1)
        return pixels


def lines(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    """Caption and picture of each line of a file.

    Raises:
        DataMissing: if there is no such file, or no such picture, naming the line.
        ConfigError: for a line that is no caption, tab and picture.
    """
    file = folder / name
    if not file.is_file():
        raise DataMissing("task.source.folder", str(folder), f"a folder with a file {name}")
    count = 0
    with file.open(encoding="utf-8") as text:
        try:
            for number, line in enumerate(text, start=1):
                if not line.strip():
                    continue
                caption, tab, target = line.rstrip("\r\n").partition("\t")
                where = f"{file}, line {number}"
                right = bool(tab and caption.strip() and target.strip()) and "\t" not in target
                require(right, "task.source", where, "caption<TAB>picture")
                path = folder / _local(target.strip())
                if not path.is_file():
                    raise DataMissing("task.source", where, f"a picture that is there: {path}")
                count += 1
                yield caption, path
        except UnicodeDecodeError as error:
            raise ConfigError("task.source", str(file), f"a file in UTF-8 ({error.reason})") from None
    require(count > 0, "task.source", str(file), "a file with one line a pair")


def _local(target: str) -> str:
    """The file of a URL, as it was saved; a path stays one."""
    return Path(urlsplit(target).path).name if "://" in target else target
