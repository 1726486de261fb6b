import pytest
import torch
import torch.nn.functional as F
from torch import nn

from privbench.attacks.leakage.attack import AttackFailed
from privbench.attacks.leakage.gradient import ClientGradient
from privbench.attacks.leakage.inverting_gradients import InvertingGradients
from privbench.attacks.leakage.objectives import Cosine
from privbench.attacks.leakage.optimise import Problem, descent


def batchnorm_net(dropout: float = 0.5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 5, 2, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(784, 10)
    )


def problem(s, labels=True) -> Problem:
    seen = s.observation()
    return Problem(ClientGradient(s.public, seen.model), seen.gradient, Cosine(), s.truth.y if labels else None, 0.01)


@pytest.mark.parametrize("labels", [True, False])
def test_batched_restarts_equal_the_loop(scene, labels):
    s = scene(nn.Sequential(nn.Conv2d(1, 4, 5), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(576, 10)), 2)
    p = problem(s, labels)
    x, logits = torch.randn(3, 2, 1, 28, 28), torch.randn(3, 2, 10)
    batched = descent(p, x, logits)
    assert batched.__name__ != "loop"
    rows = [descent(p, x[k : k + 1], logits[k : k + 1])(x[k : k + 1], logits[k : k + 1]) for k in range(3)]
    for together, apart in zip(batched(x, logits), zip(*rows, strict=True), strict=True):
        torch.testing.assert_close(together, torch.cat(apart), rtol=1e-3, atol=1e-6)


def test_a_model_that_vmap_refuses_falls_back_to_the_loop(scene, generator):
    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x if float(x.detach().sum()) > 0 else 2 * x)

    s = scene(nn.Sequential(nn.Flatten(), Branching(784, 10)))
    x = torch.randn(2, 1, 1, 28, 28)
    assert descent(problem(s), x, torch.zeros(2, 1, 10)).__name__ == "loop"
    found = InvertingGradients(iterations=3, restarts=2).reconstruct(s.view(), s.observation(), generator)
    assert found.candidates.shape == (2, 1, 1, 28, 28)


def test_batchnorm_in_training_mode_uses_the_batch_and_changes_nothing(scene):
    model = batchnorm_net(dropout=0.0)
    s = scene(model, 4)
    gradient = ClientGradient(s.public, s.sent)
    before = s.public.layout.read(model)
    expected = s.gradient[: s.public.layout.trainable]
    s.public.layout.write(before, model)
    torch.testing.assert_close(gradient(s.truth.x, s.truth.y).detach(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient.functional(s.truth.x, s.truth.y), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(s.public.layout.read(model), before)


def test_batchnorm_in_evaluation_mode_uses_the_statistics_sent(scene):
    model = batchnorm_net()
    statistics = dict(model.named_buffers())["1.running_mean"].fill_(3.0)
    s = scene(model.eval(), 4)
    statistics.zero_()  # what the public module holds means nothing
    got = ClientGradient(s.public, s.sent)(s.truth.x, s.truth.y).detach()
    torch.testing.assert_close(got, s.gradient[: len(got)], rtol=1e-4, atol=1e-6)


def test_batchnorm_restarts_run_together(scene, generator):
    s = scene(batchnorm_net(), 4)
    p = problem(s)
    assert descent(p, torch.randn(2, 4, 1, 28, 28), torch.zeros(2, 4, 10)).__name__ != "loop"


def test_restarts_are_chosen_by_the_objective(scene, generator):
    s = scene()
    found = InvertingGradients(iterations=20, restarts=3).reconstruct(s.view(), s.observation(), generator)
    assert len(found.objectives) == 3
    assert found.objective == min(found.objectives) == found.objectives[found.restart]
    assert torch.equal(found.x, found.candidates[found.restart])


def test_a_loss_without_soft_labels_is_refused_by_name(scene, generator):
    s = scene(loss=lambda model, batch: F.nll_loss(model(batch[0]).log_softmax(-1), batch[1]))
    with pytest.raises(AttackFailed, match="soft labels"):
        InvertingGradients(iterations=2, labels="joint").reconstruct(s.view(), s.observation(), generator)
