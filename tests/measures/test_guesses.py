from types import SimpleNamespace

import pytest
import torch

from privbench.benchmarks.measures.guesses import controls, guesses
from privbench.benchmarks.tasks.task import Split

PUBLIC = SimpleNamespace(shape=(1, 8, 8), mean=torch.tensor(0.0), std=torch.tensor(1.0))
TABLE = SimpleNamespace(shape=(5,))


def records(n: int, seed: int, *shape: int) -> Split:
    return Split(
        torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed)), torch.zeros(n, dtype=torch.int64)
    )


@pytest.mark.parametrize(("public", "name"), [(PUBLIC, "other_image"), (TABLE, "other_record")])
@pytest.mark.parametrize("further", [0, 1, 40])
def test_every_record_of_a_large_batch_is_guessed_by_another(public, name, further):
    """72 records and 64 distractors: nobody is guessed by the fill, which is the guess grey, or the mean."""
    truth, others, more = (records(n, seed, *public.shape) for seed, n in enumerate((72, 64, further)))
    found = guesses(public, truth, others, None, 72, more)[name]
    every = torch.cat([others.x, more.x])
    from_whom = (found[:, None] == every).flatten(2).all(2)
    assert from_whom.any(1).all()
    assert from_whom.sum(0).max() == (1 if further >= 8 else 2), "again only where there are too few"


def test_as_many_others_are_tried_as_there_are_reconstructions():
    truth, others = records(1, 0, 1, 8, 8), records(64, 1, 1, 8, 8)
    more = Split(torch.cat([others.x[:10], truth.x]), torch.zeros(11, dtype=torch.int64))
    for count, exact in ((74, False), (75, True)):
        values, arrays = controls(PUBLIC, truth, others, None, count, more)  # pyright: ignore[reportArgumentType]
        assert (values["psnr_db_other_image"] == 100) == exact, "the 75th guess is right"
        assert arrays["guess_other_image"].shape == (1, 1, 8, 8)
