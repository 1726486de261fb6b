import json
import re
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
from privbench.benchmarks.measures.leakage import Case, Leakage
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
    raises: bool = False
    objective: float = 0.5
    candidates: torch.Tensor | None = None

    def reconstruct(self, view, observation, generator):
        self.seen.append(observation)
        if self.raises:
            raise AttackFailed("diverged")
        candidates = self.x[None] if self.candidates is None else self.candidates
        return Reconstruction(self.x, self.y, self.objective, 0, (0.5,) * len(candidates), candidates)


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
    rows, arrays = measure.measure(Case(view, 1, 0, truth, torch.Generator().manual_seed(0), distractors))
    assert len({r["metric"] for r in rows}) == len(rows)
    assert all({"metric", "round", "client", "adversary", "value"} <= r.keys() for r in rows)
    return {r["metric"]: r for r in rows}, arrays


def test_a_permuted_truth_is_a_perfect_reconstruction(truth):
    attack = Fixed(truth.x.flip(0), truth.y.flip(0), [])
    rows, arrays = run(Leakage(attack, images=2), truth, distractors=Split(truth.x.roll(1, 0) * 0.5, truth.y))
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


def test_labels_that_are_told_tell_how_many_there_are(truth):
    """Of a client that draws its batches, and of a release, whose guesses have no more tries than the attack."""
    told = Fixed(truth.x, truth.y, [], frozenset({"labels", "batch_size"}))
    enrolled = view_of(truth)
    more = replace(enrolled.rounds[0].updates[0], records=7)
    rows, _ = run(Leakage(told), truth, view_of(truth, participants=(0,), updates={0: more}))
    assert (told.seen[0].records, rows["psnr_db"]["batch_size"]) == (4, "known")
    one = truth.take(torch.tensor([0]))
    view = view_of(one, participants=(0, 1), released=torch.zeros(10 * 17 + 16 * 65))
    view = replace(view, public=replace(view.public, records=(1, 2), mixture=Mixture((1.0, 2.0))))
    told = Fixed(one.x, one.y, [], frozenset({"labels", "batch_size"}))
    rows, _ = run(Leakage(told), one, view, distractors=truth.take(torch.tensor([1, 2, 0, 3])))
    assert told.seen[0].records == 1
    assert rows["psnr_db_other_image"]["value"] < 100, "one guess, not the third one, which is right"


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
    rows, _ = run(Leakage(attack), one, view, distractors=truth.take(torch.tensor([1, 2, 0, 3])))
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
    rows, arrays = run(Leakage(Fixed(truth.x, truth.y, [], raises=True)), truth)
    assert (rows["psnr_db"]["value"], rows["psnr_db"]["status"]) == (None, "failed")
    assert rows["psnr_db"]["reason"] == "diverged"
    assert "attack_seconds" not in rows
    assert arrays == {}


class Broken:
    """An attack with a mistake in it."""

    needs = frozenset()

    def reconstruct(self, view, observation, generator):
        raise IndexError("selected index k out of range")


def test_an_attack_that_breaks_is_a_recorded_failure(truth):
    rows, arrays = run(Leakage(Broken()), truth)
    assert (rows["psnr_db"]["value"], rows["psnr_db"]["status"]) == (None, "failed")
    assert rows["psnr_db"]["reason"] == "IndexError: selected index k out of range"
    assert arrays == {}


NAN = float("nan")


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        (lambda x: x * NAN, lambda y: y, "NaN or infinite"),
        (lambda x: x / 0, lambda y: y, "NaN or infinite"),
        (lambda x: x[:, :, :4], lambda y: y, r"shape \(4, 1, 4, 8\), not \(n, \*\(1, 8, 8\)\)"),
        (lambda x: x[:0], lambda y: y[:0], r"shape \(0, 1, 8, 8\)"),
        (lambda x: x, lambda y: y[:2], r"4 records and labels of shape \(2,\)"),
    ],
)
def test_what_is_no_reconstruction_is_a_recorded_failure(truth, x, y, reason):
    rows, arrays = run(Leakage(Fixed(x(truth.x), y(truth.y), [])), truth)
    for name in ("psnr_db", "ssim", "mse"):
        assert (rows[name]["value"], rows[name]["status"]) == (None, "failed")
        assert re.search(reason, rows[name]["reason"])
    assert rows["psnr_db_grey"]["value"] > 0
    assert arrays == {}


def test_a_value_that_is_no_number_fails_alone(truth):
    rows, _ = run(Leakage(Fixed(truth.x, truth.y, [], objective=NAN)), truth)
    assert (rows["gradient_objective"]["value"], rows["gradient_objective"]["status"]) == (None, "failed")
    assert rows["psnr_db"]["value"] == 100
    json.dumps([*rows.values()], allow_nan=False)


def test_the_oracle_passes_over_restarts_that_diverged(truth):
    candidates = torch.stack([truth.x * NAN, truth.x, truth.x * 0])
    rows, _ = run(Leakage(Fixed(truth.x * 0, truth.y, [], candidates=candidates)), truth)
    assert rows["psnr_db"]["value"] < rows["psnr_db_oracle"]["value"] == 100


def test_success_is_counted_at_each_threshold(truth):
    off = (truth.x * 0.37 + 0.3).clamp(0.2, 0.8)  # not clamped by [0, 1] when it is shifted
    inner = Split((off - 0.3) / 0.37, truth.y)
    shift = torch.tensor([0.0, 0.05, 0.08, 0.15]).view(-1, 1, 1, 1)  # 100, 26.0, 21.9 and 16.5 dB
    rows, _ = run(Leakage(Fixed((off + shift - 0.3) / 0.37, truth.y, []), thresholds=(20.0, 25.0, 50.5)), inner)
    shown = {name: row["value"] for name, row in rows.items() if name.startswith("success_rate")}
    assert shown == {"success_rate_20db": 0.75, "success_rate_25db": 0.5, "success_rate_50.5db": 0.25}
    assert rows["psnr_db"]["records"] == 4


def test_the_class_and_the_record_are_told_apart(truth):
    one = truth.take(torch.tensor([0]))
    raw = torch.cat([torch.full((1, 1, 8, 8), v) for v in (0.2, 0.4, 0.9)])
    others = Split((raw - 0.3) / 0.37, torch.tensor([int(one.y), int(one.y), int(one.y) + 1]))
    rows, arrays = run(Leakage(Fixed(one.x, one.y, [])), one, view_of(one), distractors=others)
    value = {name: row["value"] for name, row in rows.items()}
    found = (one.x * 0.37 + 0.3).clamp(0, 1)
    away = [-10 * np.log10(float((found - v).square().mean())) for v in (0.2, 0.4)]
    assert value["psnr_db_same_label"] == pytest.approx(np.mean(away), abs=1e-3)
    expected = -10 * np.log10(float((found - 0.3).square().mean()))
    assert value["psnr_db_class_mean"] == pytest.approx(expected, abs=1e-3)
    np.testing.assert_allclose(arrays["guess_class_mean"], 0.3, atol=1e-6)
    assert (value["identification_rank"], value["identified"], value["identified_chance"]) == (1, 1, 0.25)
    assert value["label_accuracy_majority"] == 1


def test_public_records_of_the_class_come_before_the_distractors(truth):
    one = truth.take(torch.tensor([0]))
    far = Split(torch.full((2, 1, 8, 8), 5.0), one.y.expand(2))
    attack = Leakage(Fixed(one.x, one.y, []))
    rows, _ = attack.measure(Case(view_of(one), 1, 0, one, torch.Generator(), far, Split(one.x, one.y)))
    value = {r["metric"]: r["value"] for r in rows}
    assert value["psnr_db_class_mean"] == value["psnr_db_same_label"] == 100
    rows, _ = attack.measure(Case(view_of(one), 1, 0, one, torch.Generator(), far, Split(one.x, one.y + 1)))
    value = {r["metric"]: r["value"] for r in rows}
    assert value["psnr_db_class_mean"] < 10, "nobody has the label: the mean of the distractors"
    assert "psnr_db_same_label" not in value, "no other record of the label, no such score"


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
    assert {"mse_worst", "mse_oracle", "label_accuracy"} <= rows.keys()
    assert not {name for name in rows if name.startswith(("psnr", "ssim"))}
    assert "psnr_db" not in arrays


@pytest.mark.parametrize("shape", [(9,), (2, 12)])
def test_signals_and_tables_have_the_controls_of_images(truth, shape):
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(3))
    others = Split(torch.randn(40, *shape, generator=torch.Generator().manual_seed(4)), truth.y.repeat(10))
    records = Split(x, truth.y)
    rows, arrays = run(Leakage(Fixed(x + 0.01, truth.y, [])), records, view_of(records), distractors=others)
    value = {name: row["value"] for name, row in rows.items()}
    assert value["mse"] == pytest.approx(1e-4, rel=1e-3)
    assert min(value[f"mse_{g}"] for g in ("mean", "other_record", "class_mean", "same_label")) > 0.1
    assert (value["identified"], value["identification_rank"]) == (1, 1)
    assert arrays["guess_other_record"].shape == arrays["guess_class_mean"].shape == (4, *shape)


@pytest.mark.parametrize("attack", [DLG(iterations=150), InvertingGradients(iterations=200, total_variation=1e-3)])
def test_a_real_attack_beats_the_baselines(truth, attack):
    one = truth.take(torch.tensor([0]))
    rows, _ = run(Leakage(attack), one, distractors=truth.take(torch.tensor([1, 2, 3])))
    assert rows["psnr_db"]["value"] > rows["psnr_db_mosaic"]["value"] + 10
    assert rows["attack_seconds"]["value"] > 0


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
        ("thresholds", (25.0, 20.0)),
        ("thresholds", (0.0,)),
        ("thresholds", (100.0,)),
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
