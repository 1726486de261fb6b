"""The task: splitting, checking, loss and evaluation."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.tasks import Classification, Patch, Split
from privbench.benchmarks.tasks.classification import take_turns
from privbench.benchmarks.tasks.models import SmallCNN, make
from privbench.benchmarks.tasks.partition import Dirichlet, Natural, Pathological, Quantity
from privbench.benchmarks.tasks.picture import draw
from privbench.benchmarks.tasks.sources import Digits, UCIHeart

DIGITS = Classification(Digits())


def test_data_is_loaded_once():
    assert Classification(Digits(), Dirichlet(1.0)).data is DIGITS.data


def test_split_depends_on_the_seed_alone():
    one, again, other = DIGITS.split(5, 3), DIGITS.split(5, 3), DIGITS.split(5, 4)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0], other[0])
    assert torch.equal(torch.cat(one).sort().values, torch.arange(len(DIGITS.data.train)))


def test_the_first_records_are_balanced():
    task = Classification(Digits(), records=50)
    assert task.data.train.y.bincount().tolist() == [5] * 10
    assert len(task.data.test) == len(DIGITS.data.test)
    assert len(torch.cat(task.split(3, 0))) == 50


def test_groups_take_turns_within_classes():
    y, group = torch.tensor([0] * 6 + [1] * 2), torch.tensor([0, 0, 0, 0, 1, 1, 0, 0])
    order = take_turns(Split(torch.zeros(8, 1), y, group))
    assert order.sort().values.tolist() == list(range(8))
    assert y[order][:4].tolist() == [0, 1, 0, 1]
    assert group[order][y[order] == 0][:4].tolist() == [0, 1, 0, 1]


def test_loss_is_mean_cross_entropy_and_separates():
    model = make(SmallCNN(), DIGITS.spec, 0)
    x, y = DIGITS.data.train.x[:4], DIGITS.data.train.y[:4]
    each = [Classification.loss(model, (x[i : i + 1], y[i : i + 1])) for i in range(4)]
    assert Classification.separable
    assert torch.allclose(DIGITS.loss(model, (x, y)), torch.stack(each).mean())
    assert not hasattr(DIGITS.loss, "__self__"), "a bound method would hand the data to an attacker"


def test_evaluate_in_evaluation_mode_and_modes_restored():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.BatchNorm1d(64), nn.Linear(64, 10))
    model[2].eval()
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    first, second = DIGITS.evaluate(model), DIGITS.evaluate(model)
    assert first == second
    assert [m.training for m in model] == [True, True, False, True]
    assert model.training
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())
    assert set(first) == {"accuracy", "balanced_accuracy", "auc", "loss"}


def test_a_perfect_model_is_perfect():
    class Oracle(nn.Module):
        """Answers test records in turn."""

        seen = 0

        def forward(self, x):
            self.seen += len(x)
            return nn.functional.one_hot(DIGITS.data.test.y[self.seen - len(x) : self.seen], 10).float()

    measured = DIGITS.evaluate(Oracle())
    assert (measured["accuracy"], measured["balanced_accuracy"], measured["auc"]) == (1.0, 1.0, 1.0)


def test_natural_clients(published):
    published("uci_heart")
    task = Classification(UCIHeart(), Natural(), trigger=None)
    assert task.natural_clients == 4
    task.check(4)
    assert [len(p) for p in task.split(4, 0)] == [203, 197, 83, 134]
    with pytest.raises(ConfigError) as error:
        task.check(20)
    assert str(error.value) == "federation.clients=20: uci_heart has 4 hospitals; set federation.clients=4"
    assert Classification(UCIHeart()).natural_clients is None


@pytest.mark.parametrize(
    ("task", "clients", "field"),
    [
        (DIGITS, 1443, "federation.clients"),
        (DIGITS, 0, "federation.clients"),
        (Classification(Digits(), trigger=Patch(size=9)), 5, "task.trigger.size"),
        (Classification(Digits(), trigger=Patch(target=10)), 5, "task.trigger.target"),
        (Classification(Digits(), Pathological(11)), 5, "task.partition.classes_per_client"),
        (Classification(Digits(), Quantity(sizes=(1400,), min_records=20)), 5, "task.partition.sizes"),
        (Classification(Digits(), Natural()), 5, "task.partition._target_"),
        (Classification(Digits(), records=2000), 5, "task.records"),
    ],
    ids=str,
)
def test_impossible_combinations_are_refused_by_field(task, clients, field):
    def prepare():
        task.check(clients)
        task.split(clients, 0)

    with pytest.raises(ConfigError) as error:
        prepare()
    assert error.value.field == field


def test_picture(tmp_path):
    written = draw(Classification(Digits(), Dirichlet(0.3)), 5, 0, tmp_path / "new" / "digits")
    assert [p.name for p in written] == ["digits.png", "digits.pdf"]
    assert written[0].read_bytes()[:4] == b"\x89PNG"
    assert written[1].read_bytes()[:4] == b"%PDF"
    again = draw(Classification(Digits(), Dirichlet(0.3)), 5, 0, tmp_path / "again.png")
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in written]


def test_importing_tasks_imports_no_data_packages():
    code = (
        "import sys, privbench.benchmarks.tasks.sources, privbench.benchmarks.tasks.models\n"
        "print([m for m in ('mlxtend', 'sklearn', 'medmnist', 'torchvision', 'PIL', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
