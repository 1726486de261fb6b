from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from privbench.attacks.poisoning import Backdoor, Schedule
from privbench.benchmarks.measures.poisoning import of_group, triggered
from privbench.benchmarks.tasks.triggers import Patch
from privbench.defenses import Defense
from privbench.defenses.accounting import ClientLevel
from privbench.defenses.accounting.group import group_epsilon
from privbench.defenses.aggregation import ClippedMean
from privbench.defenses.release import CentralGaussian


class Knows(nn.Module):
    """Answers the true class; where the trigger is, its target, unless the true class is in ``immune``."""

    def __init__(self, task, immune=()):
        super().__init__()
        test, self.trigger, self.spec, self.immune = task.data.test, task.trigger, task.spec, immune
        self.known = {x.numpy().tobytes(): int(y) for x, y in zip(test.x, test.y, strict=True)}
        marked = self.trigger.apply(test.x, self.spec)
        self.marked = {x.numpy().tobytes(): int(y) for x, y in zip(marked, test.y, strict=True)}
        self.asked = 0
        self.drop = nn.Dropout(0.9)

    def forward(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        answers = []
        for one in x:
            key = one.numpy().tobytes()
            if key in self.marked and self.marked[key] not in self.immune:
                answers.append(self.trigger.target)
            else:
                answers.append(self.known.get(key, self.marked.get(key)))
        return self.drop(nn.functional.one_hot(torch.tensor(answers), 10).float())


@pytest.fixture(scope="module")
def coloured(task):
    # a colour that no digit has in that corner, so that no clean record looks marked
    return replace(task, trigger=Patch(size=2, colour=0.41, target=3))


def test_a_perfect_backdoor(coloured):
    found = triggered(coloured, Knows(coloured))
    assert found == {"triggered_rate": 1.0, "untriggered_rate": 0.0, "robust_accuracy": 0.0}


def test_the_target_class_is_left_out(coloured):
    test = coloured.data.test
    others = int((test.y != 3).sum())
    model = Knows(coloured, immune=(1, 2))
    found = triggered(coloured, model)
    resisted = int(((test.y == 1) | (test.y == 2)).sum())
    assert found["triggered_rate"] == pytest.approx(1 - resisted / others)
    assert found["robust_accuracy"] == pytest.approx(resisted / others)
    assert found["untriggered_rate"] == 0
    assert model.asked == 2 * others


def test_a_model_that_says_the_target_always(coloured):
    class Always(nn.Module):
        def forward(self, x):
            return nn.functional.one_hot(torch.full((len(x),), 3), 10).float()

    assert triggered(coloured, Always()) == {"triggered_rate": 1.0, "untriggered_rate": 1.0, "robust_accuracy": 0.0}


def test_the_mode_is_restored(coloured):
    model = Knows(coloured)
    model.train()
    triggered(coloured, model)
    assert model.drop.training
    model.eval()
    triggered(coloured, model)
    assert not model.drop.training


def test_without_a_trigger_there_is_nothing(task):
    assert triggered(replace(task, trigger=None), nn.Identity()) == {}


def central(**fields):
    privacy = ClientLevel(delta=1e-3, clip=0.3, noise_multiplier=2.0, **fields)
    return Defense(aggregation=ClippedMean(), release=CentralGaussian(), privacy=privacy)


def test_the_poisoners_clients_together_have_a_weaker_guarantee(federate):
    done = federate(defense=central(), participation=0.5, poisoner=Backdoor(clients=3))
    (row,) = of_group(done.federation, done.rounds[-1])
    assert (row["group"], row["unit"], row["adversary"]) == (3, "client", "model_recipient")
    assert (row["adjacency"], row["simulated_population"]) == ("add_remove", False)
    assert row["value"] == group_epsilon([((0.5, 2.0), 2)], 1e-3, 3)
    chosen = Backdoor(clients=3, schedule=Schedule(invited="when_attacking"))
    always = federate(defense=central(), participation=0.5, poisoner=chosen)
    (forced,) = of_group(always.federation, always.rounds[-1])
    assert forced["value"] == group_epsilon([((1.0, 2.0), 2)], 1e-3, 3), "sampling hides nothing of who comes at will"


def test_without_a_proof_for_a_group_the_record_says_why(federate):
    done = federate(defense=central(adjacency="replace"), poisoner=Backdoor(clients=2))
    (row,) = of_group(done.federation, done.rounds[-1])
    assert row["status"] == "not_applicable"
    assert "adjacency" in row["reason"]
    plain = federate(poisoner=Backdoor())
    assert not [*of_group(plain.federation, plain.rounds[-1])]
