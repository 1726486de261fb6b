import json
from typing import Any

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.colors import to_rgba

from privbench.benchmarks.results import figures
from privbench.benchmarks.results.artifacts import recovered
from privbench.benchmarks.results.load import Refused, load
from privbench.benchmarks.results.read import MalformedError


def drawn(figure) -> Any:
    assert figure is not None
    return figure


def texts(axes):
    return [t.get_text() for t in axes.texts]


def test_nothing_to_show_is_none(fake):
    results = load(fake.root)
    assert list(figures.every(results)) == []
    path = fake.run()
    (path / "metrics.jsonl").write_text("")
    assert list(figures.every(load(fake.root))) == []


def test_a_figure_refuses_what_cannot_be_averaged(fake):
    fake.run(status="diverged")
    with pytest.raises(Refused, match="diverged"):
        figures.accuracy_over_rounds(load(fake.root))


def test_a_sweep_shows_all_figures(quickstart):
    names = [name for name, _ in figures.every(load(quickstart()))]
    special = (
        "noise_mechanisms",
        "attested_clients",
        figures.ROC,
        figures.MATRIX,
        figures.HARM,
    )  # which need arms that this sweep lacks
    simple = [name for name in figures.NAMES[:-1] if name not in special]
    assert names == [*simple, "reconstructions_server_operator"]


def test_privacy_has_a_panel_for_each_unit_and_adversary(quickstart):
    figure = drawn(figures.privacy_utility(load(quickstart())))
    panels = {a.get_title(): a for a in figure.axes if a.get_visible()}
    assert set(panels) == {
        "record-level, against server operator",
        "record-level, against model recipient",
        "client-level, against model recipient",
    }
    record = panels["record-level, against server operator"]
    assert [t.get_text() for t in record.get_xticklabels()] == ["8", "∞"]
    x = {c.get_label(): c.lines[0].get_xdata()[0] for c in record.containers}
    assert x["dp_local"] < min(v for k, v in x.items() if k != "dp_local")  # the rest has no guarantee here
    assert set(x) == {"none", "clip_only", "dp_local", "dp_central", "secure_aggregation", "krum"}
    chance = next(line for line in record.lines if line.get_label() == "chance")
    assert chance.get_ydata()[0] == 10
    assert "n = 1 seed" in figure.get_suptitle()


def test_perfect_privacy_does_not_stand_at_infinity(fake):
    fake.run("none")
    statement = {"unit": "record", "adversary": "network", "epsilon": 0, "delta": 0, "simulated": False}
    fake.run("silent", privacy=[statement])
    figure = drawn(figures.privacy_utility(load(fake.root)))
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["0", "∞"]


def test_curves_have_a_band_only_with_several_seeds(fake):
    fake.run(seed=0)
    one = drawn(figures.accuracy_over_rounds(load(fake.root)))
    fake.run(seed=1)
    two = drawn(figures.accuracy_over_rounds(load(fake.root)))
    assert (len(one.axes[0].collections), len(two.axes[0].collections)) == (0, 1)
    low, high = np.sort(two.axes[0].collections[0].get_paths()[0].vertices[:, 1])[[0, -1]]
    assert low < two.axes[0].lines[0].get_ydata()[0] < high


def test_asr_has_its_floor_dashed_in_the_arm_s_colour(fake):
    fake.run("krum", "patch")
    fake.run("krum")
    fake.run("none", "patch")
    figure = drawn(figures.asr_over_rounds(load(fake.root)))
    lines = figure.axes[0].lines
    dashed = [x for x in lines if x.get_linestyle() == "--" and len(np.atleast_1d(x.get_ydata()))]
    assert [x.get_ydata()[0] for x in dashed] == [pytest.approx(2.0)]  # no twin, no floor
    krum = next(x for x in lines if x.get_label() == "krum / patch")
    assert to_rgba(dashed[0].get_color()) == to_rgba(krum.get_color())


def test_leakage_without_a_number_is_written_and_has_no_bar(fake):
    fake.run("none", leakage=20.0)
    fake.run("secure_aggregation", leakage="not_applicable")
    fake.run("krum", leakage="failed")
    figure = drawn(figures.leakage(load(fake.root)))
    assert sorted(texts(figure.axes[0])) == ["failed", "n/a: nothing to attack"]
    assert [p.get_width() for p in figure.axes[0].patches] == [20.5]


def test_panels_of_adversaries_share_an_axis_that_holds_the_longest_bar(fake):
    path = fake.run("none", leakage=25.0)
    weaker = {"metric": "psnr_db", "round": 1, "client": 0, "adversary": "model_recipient", "value": 8.0}
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(weaker) + "\n")
    panels = drawn(figures.leakage(load(fake.root))).axes
    assert [[p.get_width() for p in a.patches] for a in panels] == [[8.0], [25.5]]
    assert all(a.get_xlim()[0] == 0 and a.get_xlim()[1] > 25.5 for a in panels)


def test_leakage_of_signals_has_bars_of_their_error_and_the_trivial_guess(fake):
    fake.run("none", leakage=0.5, signals=True)
    fake.run("krum", leakage="failed", signals=True)
    figure = drawn(figures.leakage(load(fake.root)))
    (axes,) = figure.axes
    assert axes.get_xlabel() == "MSE of reconstructions (lower leaks more)"
    assert [p.get_width() for p in axes.patches] == [0.5]
    assert texts(axes) == ["failed"]
    guess = next(x for x in axes.lines if x.get_label() == "guess: mean")
    assert list(guess.get_xdata()) == [1.25]


def test_images_and_signals_have_a_panel_each(fake):
    fake.run("none", leakage=20.0)
    fake.run("none", leakage=0.5, signals=True, task="ecg")
    figure = drawn(figures.leakage(load(fake.root)))
    assert [a.get_xlabel()[:4] for a in figure.axes] == ["PSNR", "MSE "]
    assert [[p.get_width() for p in a.patches] for a in figure.axes] == [[20.5], [0.5]]


def test_reconstructions_show_psnr_and_name_the_adversary(fake):
    fake.run("none", leakage=20.0, images=2)
    fake.run("none", "patch", leakage=10.0, images=2)
    fake.run("secure_aggregation", leakage="not_applicable")
    results = load(fake.root)
    figure = drawn(figures.reconstructions(results, "server_operator"))
    assert "server operator" in figure.get_suptitle()
    rows = [a.get_ylabel().replace("\n", " ") for a in figure.axes if a.get_ylabel()]
    assert rows == ["original", "none", "secure_ aggregation", "guess: class mean", "guess: mosaic"]
    assert any("n/a: no update is visible" in t for a in figure.axes for t in texts(a))
    run = next(r for r in results.runs if r.label == "none")
    shown = recovered(run, "server_operator", 8)
    assert shown is not None
    scores = [shown.score(x) for x in (shown.reconstructions, *shown.guesses.values())]
    with np.load(run.path / "artifacts" / "leakage_r1_c0_server_operator.npz") as kept:
        np.testing.assert_allclose(scores[0][:2], kept["psnr_db"], atol=1e-4)
    labels = [a.xaxis.label for a in figure.axes if a.get_xlabel()]
    assert [t.get_text() for t in labels] == [f"{p:.1f} dB" for each in scores for p in each]
    best = np.max(scores[1:], 0)
    assert [t.get_fontweight() == "bold" for t in labels[:4]] == list(scores[0] > best)


def test_arms_with_other_victims_have_their_own_originals(fake):
    fake.run("none", images=2)
    other = fake.run("krum", images=2)
    file = other / "artifacts" / "leakage_r1_c0_server_operator.npz"
    with np.load(file) as found:
        np.savez(file, **{**found, "originals": 1 - found["originals"]})
    figure = drawn(figures.reconstructions(load(fake.root), "server_operator"))
    rows = [a.get_ylabel().replace("\n", " ") for a in figure.axes if a.get_ylabel()]
    guesses = ["guess: class mean", "guess: mosaic"]
    one, two = ([f"original ({arm})", arm, *(f"{g} ({arm})" for g in guesses)] for arm in ("none", "krum"))
    assert rows == [*one, *two]


def test_arms_with_the_same_victims_share_originals_and_guesses(fake):
    fake.run("none", images=2)
    other = fake.run("krum", images=2)
    fake.run("secure_aggregation", leakage="not_applicable")
    fake.run("clip_only", images=2)
    file = other / "artifacts" / "leakage_r1_c0_server_operator.npz"
    with np.load(file) as found:
        np.savez(file, **{**found, "originals": 1 - found["originals"]})
    figure = drawn(figures.reconstructions(load(fake.root), "server_operator"))
    rows = [" ".join(a.get_ylabel().split()).replace("_ ", "_") for a in figure.axes if a.get_ylabel()]
    guesses = ["guess: class mean", "guess: mosaic"]
    two, one = ([*(f"{g} ({whose})" for g in guesses)] for whose in ("none and 1 more", "krum"))
    assert rows == [
        "original (none and 1 more)", "none", "clip_only", *two,
        "original (krum)", "krum", "secure_aggregation", *one,
    ]  # fmt: skip


def test_pictures_of_guesses_are_left_out_where_a_run_kept_none(fake):
    path = fake.run("none") / "artifacts" / "leakage_r1_c0_server_operator.npz"
    np.savez(path, originals=np.zeros((2, 1, 7, 7)), reconstructions=np.zeros((2, 1, 7, 7)), psnr_db=np.zeros(2))
    figure = drawn(figures.reconstructions(load(fake.root), "server_operator"))
    assert [a.get_ylabel() for a in figure.axes if a.get_ylabel()] == ["original", "none"]
    assert [a.get_xlabel() for a in figure.axes if a.get_xlabel()] == ["100.0 dB"] * 2


def test_a_broken_artifact_is_named(fake):
    path = fake.run() / "artifacts" / "leakage_r1_c0_server_operator.npz"
    path.write_bytes(b"nothing")
    with pytest.raises(MalformedError, match=r"leakage_r1_c0_server_operator.npz:1: not an archive"):
        figures.reconstructions(load(fake.root), "server_operator")


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"originals": np.zeros((2, 1, 3, 3)), "reconstructions": np.zeros((1, 1, 3, 3))}, "differ in shape"),
        ({"originals": np.zeros((2, 1, 1, 3, 3)), "reconstructions": np.zeros((2, 1, 1, 3, 3))}, "no images, signals"),
        ({"originals": np.zeros((2, 3)), "reconstructions": np.zeros((2, 3)), "features": ["age"]}, "1 features named"),
    ],
)
def test_an_artifact_of_another_shape_is_named(fake, arrays, problem):
    np.savez(fake.run() / "artifacts" / "leakage_r1_c0_server_operator.npz", **arrays)
    with pytest.raises(MalformedError, match=problem):
        figures.reconstructions(load(fake.root), "server_operator")


def test_files_repeat_byte_for_byte_and_embed_truetype(fake, tmp_path):
    fake.run("dp_local")
    before = dict(rcParams)
    made = [figures.accuracy_over_rounds(load(fake.root)) for _ in range(2)]
    first, second = ([p.read_bytes() for p in figures.save(f, tmp_path / str(i))] for i, f in enumerate(made) if f)
    assert first == second
    png, pdf = first
    assert png.startswith(b"\x89PNG")
    assert b"/FontFile2" in pdf  # TrueType
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf
    assert dict(rcParams) == before
