"""The comparison itself: that contenders do the same work and that ours is no worse than a plain loop."""

import itertools

import pytest
import torch

from privbench.attacks.leakage.inverting_gradients import InvertingGradients
from privbench.benchmarks.speed import inversion
from privbench.benchmarks.tasks.models import LeNet, make


def plain(scene: inversion.Scene, iterations: int) -> inversion.Result:
    """The authors' algorithm as one writes it: one image at a time, ``1 - cos``, signed Adam."""
    found = []
    for k in range(len(scene.raw)):
        target = torch.cat([g.reshape(-1) for g in scene.gradients(k)])
        x = torch.randn(1, 1, 3, 32, 32, generator=torch.Generator().manual_seed(k))[0].requires_grad_()
        optimiser = torch.optim.Adam([x], lr=0.1)
        low, high = -inversion.MEAN / inversion.STD, (1 - inversion.MEAN) / inversion.STD
        for i in range(iterations):
            parameters = list(scene.model.parameters())
            value = inversion.loss(scene.model, (x, scene.labels[[k]]))
            slopes = torch.autograd.grad(value, parameters, create_graph=True)
            gradient = torch.cat([s.reshape(-1) for s in slopes])
            variation = x.diff(dim=2).abs().mean() + x.diff(dim=3).abs().mean()
            cost = 1 - torch.cosine_similarity(gradient, target, dim=0) + 0.01 * variation
            x.grad = torch.autograd.grad(cost, x)[0].sign()
            optimiser.param_groups[0]["lr"] = 0.1 * 0.1 ** sum(i >= iterations * m // 8 for m in (3, 5, 7))
            optimiser.step()
            with torch.no_grad():
                x.clamp_(low, high)
        found.append(x.detach())
    return inversion.Result("plain", 1.0, scene.quality(found))


@pytest.mark.golden
def test_side_by_side_reaches_what_the_plain_loop_reaches():
    raw, labels, _ = inversion.images(3)
    scene = inversion.Scene(make(LeNet(), inversion.SPEC, 0), raw, labels)
    ours = inversion.ours(scene, InvertingGradients(iterations=120, labels="known", compile="never"))
    assert "side by side" in ours.note
    assert float(ours.quality.mean()) > float(plain(scene, 120).quality.mean()) - 0.5
    assert float(ours.quality.mean()) > 11


def test_the_table_has_the_ratio_of_cpu_seconds():
    base = inversion.Result("peer", 10.0, torch.tensor([20.0, 22.0]))
    text = inversion.table("title", base, [inversion.Result("privbench", 2.0, torch.tensor([21.0, 23.0]), "how")])
    assert "5.00x" in text
    assert "22.00 +- 1.41 dB" in text


def test_the_ladder_ends_where_the_peer_is_reached():
    def result(seconds: float, quality: float) -> inversion.Result:
        return inversion.Result("", seconds, torch.tensor([quality, quality]))

    ladder = {f"{n} iterations": lambda n=n: result(n, 10.0 + n) for n in range(1, 9)}
    text = inversion.compare("title", lambda: result(60.0, 14.5), {"all": lambda: result(8.0, 19.0)}, ladder)
    rows = text.splitlines()[2:]
    assert [row.split()[0] for row in rows] == ["all", "4", "5"]
    assert "12.00x" in rows[-1]
    assert "fewest for the peer's dB" in rows[-1]
    assert "fewest" not in rows[-2]


def test_rungs_rise_by_a_fifth_to_all_iterations():
    steps = inversion.rungs(4800)
    assert (steps[0], steps[-1]) == (75, 4800)
    assert all(1.15 < b / a < 1.23 for a, b in itertools.pairwise(steps))


def test_the_command_runs_without_a_peer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inversion, "find_spec", lambda name: None)
    inversion.main(["--images", "2", "--iterations", "8", "--dlg", "4", "--convnet", "1", "--compile", "never"])
    out = capsys.readouterr().out
    assert out.count("privbench") >= 4
    assert "crops of scikit-learn's photographs" in out
