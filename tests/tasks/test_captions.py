"""A folder of pictures with a file of captions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.tasks import Contrastive
from privbench.benchmarks.tasks.models import DualEncoder, make
from privbench.benchmarks.tasks.pairs import unpack
from privbench.benchmarks.tasks.sources import Captions, DataMissing
from privbench.benchmarks.tasks.triggers import Patch
from privbench.benchmarks.tasks.vocabulary import Vocabulary, words

SOURCE = Captions(classes=("red", "green sheet"), prompts=("a {} thing",), size=8, words=6)
TRAIN = (
    "A red picture\tred.png",
    "something Green: sheet!\tgreen.png",
    "nothing at all\thttps://example.org/a/b/red.png?size=2",
    "red again, and again\tred.png",
)
TEST = ("the red one\tred.png", "no class\tgreen.png", "one green sheet\tgreen.png")


@pytest.fixture
def folder(tmp_path):
    """``folder(train, test)``: captions beside two pictures of one colour each."""
    made = tmp_path / "captions"
    made.mkdir()
    for name, colour, size in (("red", (255, 0, 0), (20, 12)), ("green", (0, 255, 0), (9, 30))):
        Image.new("RGB", size, colour).save(made / f"{name}.png")

    def write(train=TRAIN, test=TEST):
        (made / "train.tsv").write_text("".join(f"{line}\n" for line in train), encoding="utf-8")
        (made / "test.tsv").write_text("".join(f"{line}\n" for line in test), encoding="utf-8")
        return str(tmp_path)

    return write


def test_pairs_of_a_folder(folder):
    pairs = SOURCE.load(folder())
    train, test, spec = pairs.data.train, pairs.data.test, pairs.spec
    assert train.y.tolist() == [0, 1, 2, 0], "the third names no class"
    assert test.y.tolist() == [0, 1], "what names none isn't tested"
    assert (spec.picture.shape, spec.shape, spec.classes) == ((3, 8, 8), (198,), ("red", "green sheet"))
    shown, ids = unpack(train.x, (3, 8, 8))
    raw = (shown * spec.picture.std + spec.picture.mean).mean((2, 3))
    wanted = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 0, 0]])
    assert torch.allclose(raw, wanted, atol=0.01), "a URL stands for the file that it names"
    assert int(ids.max()) <= spec.vocabulary
    assert [len(own) for own in pairs.captions] == [2, 1]
    assert pairs.prompts.shape == (2, 1, 6)


def test_it_trains(folder, federate):
    task = Contrastive(SOURCE, trigger=Patch(size=2), data_dir=folder())
    model = make(DualEncoder(width=2), task.spec, 0)
    found = federate(task=task, model=model, clients=1, rounds=1, local={"batch_size": 4})
    assert torch.isfinite(found.model).all()
    assert 0 <= task.evaluate(model)["accuracy"] <= 1


def test_the_vocabulary_is_of_training_captions_and_limited(folder):
    data = folder(test=(*TEST, "red unheard\tred.png"))
    limited = replace(SOURCE, vocabulary=3, classes=("again", "red")).load(data)
    assert limited.spec.vocabulary == 3
    counted = Vocabulary(["b a", "a c", "c a d"], 2)
    assert counted.numbers == {"a": 1, "c": 2}
    assert counted.encode(["d c, A b", ""], 2).tolist() == [[2, 1], [0, 0]]
    assert counted.encode(["a c a"], 2).tolist() == [[1, 2]], "the rest is cut off"
    assert words("Wine-red_2nd, über") == ["wine", "red", "2nd", "über"]


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("no tab", r"train\.tsv, line 2.*caption<TAB>picture"),
        ("a\tb\tc", r"line 2.*caption<TAB>picture"),
        ("\tred.png", r"line 2.*caption<TAB>picture"),
        ("a red one\tgone.png", r"line 2.*gone\.png"),
        ("a red one\ttrain.tsv", r"train\.tsv.*a picture that can be read"),
    ],
)
def test_a_bad_line_is_named(folder, line, match):
    data = folder(train=(TRAIN[0], line, TRAIN[1]))
    with pytest.raises(ConfigError, match=match):
        SOURCE.load(data)


def test_files_that_are_missing_or_empty(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("PRIVBENCH_DATA", raising=False)
    with pytest.raises(DataMissing, match="elsewhere"):
        replace(SOURCE, folder="elsewhere").load(str(tmp_path))
    data = folder()
    with pytest.raises(DataMissing, match=r"other\.tsv"):
        replace(SOURCE, train="other.tsv").load(data)
    with pytest.raises(ConfigError, match="one line a pair"):
        SOURCE.load(folder(train=("",)))
    (tmp_path / "captions" / "train.tsv").write_bytes(b"\xff\xfe\t\n")
    with pytest.raises(ConfigError, match="UTF-8"):
        SOURCE.load(data)


def test_classes_that_no_caption_names(folder):
    with pytest.raises(ConfigError, match="blue"):
        replace(SOURCE, classes=("red", "blue")).load(folder(test=TEST[:1]))
    with pytest.raises(ConfigError, match="name one of the classes"):
        SOURCE.load(folder(test=("nothing\tred.png",)))
    with pytest.raises(ConfigError, match="classes"):
        Captions(classes=("red",))


def test_the_middle_of_a_long_picture_is_kept(folder, tmp_path):
    data = folder()
    wide = np.zeros((10, 40, 3), dtype=np.uint8)
    wide[:, 15:25] = 255
    Image.fromarray(wide).save(tmp_path / "captions" / "red.png")
    pairs = SOURCE.load(data)
    shown, _ = unpack(pairs.data.train.x[:1], (3, 8, 8))
    raw = shown[0] * pairs.spec.picture.std + pairs.spec.picture.mean
    assert raw[:, :, 1:-1].min() > 0.9
