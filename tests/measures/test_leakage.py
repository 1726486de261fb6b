from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from sklearn.datasets import load_digits
from torch import nn

from privbench.attacks.leakage.attack import AttackFailed, Reconstruction
from privbench.attacks.leakage.dlg import DLG
from privbench.attacks.leakage.inverting_gradients import InvertingGradients
from privbench.benchmarks.build import ConfigError, build
from privbench.benchmarks.federation.update import Layout, Update
from privbench.benchmarks.federation.view import Mixture, Public, RoundView, View
from privbench.benchmarks.measures.leakage import Leakage, label_accuracy
from privbench.benchmarks.tasks.task import Split


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


@dataclass(frozen=True)
class Fixed:
    """Returns what it was told to, and keeps what it was given."""

    x: torch.Tensor
    y: torch.Tensor
    seen: list
    needs: frozenset[str] = frozenset()

    def reconstruct(self, view, observation, generator):
        self.seen.append(observation)
        if not torch.isfinite(self.x).all():
            raise AttackFailed("diverged")
        return Reconstruction(self.x, self.y, 0.5, 0, (0.5,), self.x[None])


@pytest.fixture
def truth() -> Split:
    x, y = load_digits(return_X_y=True)
    raw = torch.tensor(np.asarray(x)[:4], dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return Split((raw - 0.3) / 0.37, torch.tensor(np.asarray(y)[:4]))


def view_of(truth: Split, adversary: str = "server_operator", **seen) -> View:
    torch.manual_seed(0)
    shape = tuple(truth.x.shape[1:])
    model = nn.Sequential(nn.Flatten(), nn.Linear(truth.x[0].numel(), 16), nn.Tanh(), nn.Linear(16, 10))
    layout = Layout.of(model)
    mean, std = torch.tensor(0.3), torch.tensor(0.37)
    public = Public(model, layout, loss, shape, 10, mean, std, "gradient", 0.1, lambda n: 1)
    parts = torch.autograd.grad(loss(model, (truth.x, truth.y)), list(model.parameters()))
    update = Update(torch.cat([p.flatten() for p in parts]), layout, "gradient", len(truth))
    seen = seen or {"participants": (0,), "updates": {0: update}}
    return View(adversary, public, (RoundView(1, sent=layout.read(model), **seen),))


def run(measure: Leakage, truth: Split, view: View | None = None, distractors=None):
    view = view_of(truth) if view is None else view
    rows, arrays = measure.measure(view, 1, 0, truth, torch.Generator().manual_seed(0), distractors)
    assert len({r["metric"] for r in rows}) == len(rows)
    assert all({"metric", "round", "client", "adversary", "value"} <= r.keys() for r in rows)
    return {r["metric"]: r for r in rows}, arrays


def test_a_permuted_truth_is_a_perfect_reconstruction(truth):
    attack = Fixed(truth.x.flip(0), truth.y.flip(0), [])
    rows, arrays = run(Leakage(attack, images=2), truth, distractors=truth.x.roll(1, 0) * 0.5)
    value = {name: row["value"] for name, row in rows.items()}
    assert value["psnr_db"] == value["psnr_db_worst"] == 100
    assert (value["psnr_exact"], value["ssim"], value["label_accuracy"]) == (4, pytest.approx(1), 1)
    assert value["gradient_error"] < 1e-5
    for name in ("grey", "mean_colour", "mosaic", "other_image"):
        assert 0 < value[f"psnr_db_{name}"] < 30
        assert value[f"ssim_{name}"] < 1
    assert arrays["originals"].shape == arrays["reconstructions"].shape == (2, 1, 8, 8)
    np.testing.assert_allclose(arrays["originals"], arrays["reconstructions"], atol=1e-6)
    assert arrays["labels"].tolist() == arrays["labels_found"].tolist()


def test_one_exact_match_leaves_the_mean_finite(truth):
    x = torch.zeros_like(truth.x)
    x[0] = truth.x[0]
    rows, _ = run(Leakage(Fixed(x, truth.y, [])), truth)
    assert rows["psnr_exact"]["value"] == 1
    assert 25 < rows["psnr_db"]["value"] < 50
    assert rows["psnr_db_median"]["value"] < 20


def test_truth_reaches_the_attack_only_as_declared(truth):
    blind = Fixed(truth.x, truth.y, [])
    rows, _ = run(Leakage(blind), truth)
    assert blind.seen[0].labels is None
    assert rows["psnr_db"]["labels"] == "from_gradient"
    told = replace(blind, seen=[], needs=frozenset({"labels", "batch_size"}))
    rows, _ = run(Leakage(told), truth)
    assert torch.equal(told.seen[0].labels, truth.y)
    assert (rows["psnr_db"]["labels"], rows["psnr_db"]["batch_size"]) == ("known", "claimed")


def test_a_release_shows_no_count(truth):
    attack = Fixed(truth.x, truth.y, [], frozenset({"batch_size"}))
    sent = view_of(truth).rounds[0].sent
    assert sent is not None
    view = view_of(truth, released=sent * 0.9)
    rows, _ = run(Leakage(attack), truth, view)
    assert attack.seen[0].records == 4
    row = rows["psnr_db"]
    assert (row["source"], row["exact"], row["batch_size"]) == ("release", False, "known")


@pytest.mark.parametrize(("participants", "sought"), [((0,), 1), ((0, 1), 3), (None, 1)])
def test_the_records_of_a_whole_cohort_are_sought_and_as_many_images_guessed(truth, participants, sought):
    one = truth.take(torch.tensor([0]))
    view = view_of(one, participants=participants, released=torch.zeros(10 * 17 + 16 * 65))
    view = replace(view, public=replace(view.public, records=(1, 2), mixture=Mixture((1.0, 2.0))))
    attack = Fixed(truth.x[1:], truth.y[1:], [], frozenset({"batch_size"}))
    rows, _ = run(Leakage(attack), one, view, distractors=torch.cat([truth.x[1:3], one.x, truth.x[3:]]))
    assert attack.seen[0].records == sought
    assert rows["psnr_db"]["batch_size"] == "claimed"
    assert (rows["psnr_db_other_image"]["value"] == 100) == (sought == 3), "the third guess is right"


def test_nothing_to_attack_is_not_a_psnr(truth):
    rows, arrays = run(Leakage(Fixed(truth.x, truth.y, [])), truth, view_of(truth, participants=(1, 2)))
    for name in ("psnr_db", "ssim", "mse"):
        assert rows[name]["value"] is None
        assert rows[name]["status"] == "not_applicable"
    assert rows["psnr_db_grey"]["value"] > 0
    assert arrays == {}


def test_a_failed_attack_says_why(truth):
    rows, arrays = run(Leakage(Fixed(truth.x * float("nan"), truth.y, [])), truth)
    assert (rows["psnr_db"]["value"], rows["psnr_db"]["status"]) == (None, "failed")
    assert rows["psnr_db"]["reason"] == "diverged"
    assert "attack_seconds" not in rows
    assert arrays == {}


def test_large_batches_can_be_skipped(truth):
    attack = Fixed(truth.x, truth.y, [])
    rows, _ = run(Leakage(attack, max_batch=3), truth)
    assert rows["psnr_db"]["status"] == "skipped"
    assert attack.seen == []


def test_fewer_reconstructions_than_records_count_against_the_attack(truth):
    rows, arrays = run(Leakage(Fixed(truth.x[1:2], truth.y[1:2], [])), truth)
    assert rows["psnr_exact"]["value"] == 1
    assert rows["label_accuracy"]["value"] == 0.25
    assert arrays["labels_found"].tolist() == [-1, int(truth.y[1]), -1, -1]


def test_tables_have_mse_only(truth):
    table = Split(truth.x.flatten(1)[:, :9], truth.y)
    rows, arrays = run(Leakage(Fixed(table.x, table.y, [])), table)
    assert rows["mse"]["value"] == 0
    assert rows["mse_mean"]["value"] > 0
    assert not {name for name in rows if name.startswith(("psnr", "ssim"))}
    assert "psnr_db" not in arrays


@pytest.mark.parametrize("attack", [DLG(iterations=150), InvertingGradients(iterations=200, total_variation=1e-3)])
def test_a_real_attack_beats_the_baselines(truth, attack):
    one = truth.take(torch.tensor([0]))
    rows, _ = run(Leakage(attack), one, distractors=truth.x[1:])
    assert rows["psnr_db"]["value"] > rows["psnr_db_mosaic"]["value"] + 10
    assert rows["attack_seconds"]["value"] > 0


def test_label_accuracy_is_of_multisets():
    assert label_accuracy(torch.tensor([1, 0, 1]), torch.tensor([1, 1, 2])) == pytest.approx(2 / 3)
    assert label_accuracy(torch.tensor([0]), torch.tensor([0, 0])) == 0.5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rounds", ()),
        ("rounds", (0,)),
        ("rounds", (2, 1)),
        ("victims", 0),
        ("victims", (1, 1)),
        ("adversaries", ("nobody",)),
        ("adversaries", ()),
        ("images", 0),
        ("max_batch", 0),
    ],
)
def test_bad_settings(field, value):
    with pytest.raises(ConfigError, match=field):
        Leakage(DLG(), **{field: value})


def test_victims():
    assert Leakage(DLG(), victims=3).clients(2) == (0, 1)
    assert Leakage(DLG(), victims=(4, 1)).clients(5) == (4, 1)
    with pytest.raises(ConfigError, match="clients from 0 to 3"):
        Leakage(DLG(), victims=(4, 1)).clients(4)


@pytest.mark.parametrize("name", ["inverting_gradients", "dlg"])
def test_yaml_builds(name):
    with initialize_config_module(config_module="privbench.conf", version_base="1.3"):
        config = OmegaConf.to_container(compose(overrides=[f"+leakage={name}"]).leakage, resolve=True)
    assert isinstance(build(config), Leakage)


def test_none_is_empty():
    with initialize_config_module(config_module="privbench.conf", version_base="1.3"):
        assert compose(overrides=["+leakage=none"]).get("leakage", {}) == {}
