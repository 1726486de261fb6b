import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from privbench.attacks.leakage import descent as descents
from privbench.attacks.leakage.attack import AttackFailed
from privbench.attacks.leakage.descent import descent
from privbench.attacks.leakage.gradient import ClientGradient
from privbench.attacks.leakage.inverting_gradients import InvertingGradients
from privbench.attacks.leakage.objectives import Cosine, SquaredDistance
from privbench.attacks.leakage.priors import TotalVariation
from privbench.attacks.leakage.problem import Problem
from privbench.benchmarks.tasks.task import Split


def batchnorm_net(dropout: float = 0.5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 5, 2, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(784, 10)
    )


def relu() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 5, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(784, 10))


def problem(s, labels=True) -> Problem:
    seen = s.observation()
    prior = ((TotalVariation(), torch.tensor([0.01])),)
    y = s.truth.y[None] if labels else None
    return Problem(ClientGradient(s.public, seen.model), seen.gradient[None], Cosine(), y, prior)


def start(s, restarts):
    records = len(s.truth)
    return torch.randn(restarts, records, 1, 28, 28), torch.randn(restarts, records, 10)


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("how", ["in one pass", "by vmap"])
def test_batched_restarts_equal_the_loop(scene, labels, how, monkeypatch):
    if how == "by vmap":
        monkeypatch.setattr(descents, "_one_pass", lambda *_: None)
    s = scene(nn.Sequential(nn.Conv2d(1, 4, 5), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(576, 10)), 2)
    p = problem(s, labels)
    x, logits = start(s, 3)
    rows = p.rows(3)
    y = logits if rows.labels is None else rows.labels
    batched = descent(p, rows, x, y, 1, "never")
    assert how in batched.how
    alone = [descent(p, p.rows(1), x[[k]], y[[k]], 1, "never") for k in range(3)]
    assert "in a loop" in alone[0].how
    each = [d.evaluate(x[[k]], y[[k]], torch.zeros_like(x[[k]])) for k, d in enumerate(alone)]
    for together, apart in zip(batched.evaluate(x, y, torch.zeros_like(x)), zip(*each, strict=True), strict=True):
        if together is None:
            assert labels
            continue
        torch.testing.assert_close(together, torch.cat(apart), rtol=1e-3, atol=1e-6)


def test_several_targets_side_by_side_are_each_its_own(scene, digits):
    """Different records behind one model: each target's result is what it is alone, up to rounding."""
    scenes = [scene(relu(), Split(digits.x[[k]], digits.y[[k]])) for k in range(3)]
    attack = InvertingGradients(iterations=30, compile="never")
    view, seen = scenes[0].view(), [s.observation() for s in scenes]
    many = attack.reconstruct_many(view, seen, [torch.Generator().manual_seed(k) for k in range(3)])
    for k, found in enumerate(many):
        alone = attack.reconstruct(view, seen[k], torch.Generator().manual_seed(k))
        assert not isinstance(found, AttackFailed)
        assert found.y.tolist() == [int(digits.y[k])] == alone.y.tolist()
        assert found.objective == pytest.approx(alone.objective, rel=0.05)
        assert "3 side by side" in found.engine


def test_one_unusable_target_leaves_the_others(scene):
    s = scene()
    seen = s.observation()
    dead = replace(seen, gradient=torch.zeros_like(seen.gradient))
    attack = InvertingGradients(iterations=2)
    found = attack.reconstruct_many(s.view(), [seen, dead, seen], [torch.Generator().manual_seed(k) for k in range(3)])
    assert [isinstance(f, AttackFailed) for f in found] == [False, True, False]


def test_labels_that_do_not_cover_one_target_fail_it_alone(scene):
    s = scene(records=2)
    seen = replace(s.observation(), labels=s.truth.y)
    short = replace(seen, labels=s.truth.y[:1])
    draws = [torch.Generator().manual_seed(k) for k in range(3)]
    attack = InvertingGradients(iterations=2, labels="known")
    found = attack.reconstruct_many(s.view(), [short, seen, seen], draws)
    assert [isinstance(f, AttackFailed) for f in found] == [True, False, False]
    alone = attack.reconstruct(s.view(), seen, torch.Generator().manual_seed(2))
    assert not isinstance(found[2], AttackFailed)
    torch.testing.assert_close(found[2].x, alone.x, rtol=1e-3, atol=1e-3)


def test_a_model_that_vmap_refuses_falls_back_to_the_loop(scene, generator):
    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x if float(x.detach().sum()) > 0 else 2 * x)

    s = scene(nn.Sequential(nn.Flatten(), Branching(784, 10)))
    p, (x, _) = problem(s), start(s, 2)
    rows = p.rows(2)
    assert rows.labels is not None
    assert "vmap refuses" in descent(p, rows, x, rows.labels, 1, "never").how
    found = InvertingGradients(iterations=3, restarts=2).reconstruct(s.view(), s.observation(), generator)
    assert found.candidates.shape == (2, 1, 1, 28, 28)


def test_a_pass_that_gives_something_else_is_not_taken(scene):
    """This model looks at the whole batch; so does batch normalisation, whose weights are refused by name."""

    class Centred(nn.Linear):
        def forward(self, x):
            return super().forward(x - x.mean(0))

    for model in (nn.Sequential(nn.Flatten(), Centred(784, 10)), batchnorm_net()):
        s = scene(model, 2)
        p, (x, _) = problem(s), start(s, 2)
        rows = p.rows(2)
        assert rows.labels is not None
        assert "by vmap" in descent(p, rows, x, rows.labels, 1, "never").how


class Penalised(nn.Linear):
    """Its weights are in the loss beside what the layer makes of them."""


def with_penalty(model, batch):
    penalty = sum(p.square().sum() for m in model.modules() if isinstance(m, Penalised) for p in m.parameters())
    return F.cross_entropy(model(batch[0]), batch[1]) + 1e-3 * penalty


def plain(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


class Twice(nn.Module):
    """One layer used twice, behind a border that mirrors the image."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, 2, 1, padding_mode="reflect")
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(4 * 196, 10)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        return self.last(torch.tanh(self.again(torch.tanh(self.again(x)))).flatten(1))


@pytest.mark.parametrize(
    ("model", "loss", "how"),
    [
        (lambda: nn.Sequential(nn.Flatten(), Penalised(784, 10)), with_penalty, "by vmap"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), with_penalty, "in one pass"),
        (Twice, plain, "in one pass"),
    ],
)
def test_however_rows_run_slopes_are_those_of_the_loop(scene, model, loss, how):
    """At the start, half way, and near the truth, where a part of the gradient that got lost would be all there is."""
    torch.manual_seed(0)
    s = scene(model(), 2, loss=loss)
    gradient = ClientGradient(s.public, s.sent)
    target = gradient(s.truth.x, s.truth.y).detach()[None]
    p = Problem(gradient, target, SquaredDistance(), s.truth.y[None])
    rows, (x, _) = p.rows(2), start(s, 2)
    assert rows.labels is not None
    run, centre = descent(p, rows, x, rows.labels, 1, "never"), torch.zeros_like(x)
    assert how in run.how
    for far in (1.0, 0.5, 0.03):
        at = s.truth.x + far * (x - s.truth.x)
        expected = descents._loop(p, rows)(at, rows.labels, centre)
        torch.testing.assert_close(run.evaluate(at, rows.labels, centre)[1], expected[1], rtol=1e-3, atol=1e-6)


def test_compiling_has_to_save_more_than_it_takes(scene):
    s = scene(relu())
    p, (x, _) = problem(s), start(s, 2)
    rows = p.rows(2)
    assert rows.labels is not None
    note = descent(p, rows, x, rows.labels, 1000, "auto").how
    assert re.search(r"2 side by side in one pass, not compiled: saves about [01] s, takes 60", note)


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
    p, (x, _) = problem(s), start(s, 2)
    rows = p.rows(2)
    assert rows.labels is not None
    assert "by vmap" in descent(p, rows, x, rows.labels, 1, "never").how


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
