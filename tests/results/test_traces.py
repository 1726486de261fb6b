"""The figure of signals and table rows."""

from typing import Any

import numpy as np

from privbench.benchmarks.results import figures
from privbench.benchmarks.results.load import load


def panels(figure: Any) -> list[Any]:
    assert figure is not None
    return [a for a in figure.axes if a.get_lines()]


def test_signals_are_lines_over_their_originals(fake):
    fake.run("none", leakage=0.5, signals=True, images=2)
    fake.run("krum", leakage="failed", signals=True)
    results = load(fake.root)
    figure: Any = figures.traces(results, "server_operator")
    found = panels(figure)
    assert len(found) == 2
    lines = {x.get_label(): np.asarray(x.get_ydata()) for x in found[0].get_lines()}
    np.testing.assert_allclose(lines["reconstruction"], lines["original"] + 0.1)
    assert found[0].get_title() == f"MSE 0.01 (class mean {np.mean(lines['original'] ** 2):.3g})"
    assert set(lines) == {"original", "reconstruction", "guess: class mean"}
    assert any("krum: failed: nothing is seen" in t.get_text() for a in figure.axes for t in a.texts)
    assert figures.reconstructions(results, "server_operator") is None
    assert "reconstructions_server_operator" in dict(figures.every(results))


def test_a_table_has_its_features_names_and_one_scale_a_record(fake):
    x = np.array([[0.0, 2.0, -1.0], [1.0, 0.0, 3.0]])
    for defense, off in (("none", 0.5), ("krum", 50.0)):
        path = fake.run(defense, leakage=0.5, signals=True) / "artifacts" / "leakage_r1_c0_server_operator.npz"
        np.savez(path, originals=x, reconstructions=x + off, features=np.array(["age", "sex", "chol"]))
    found = panels(figures.traces(load(fake.root), "server_operator"))
    assert [a.get_title() for a in found] == ["MSE 0.25", "MSE 0.25", "MSE 2.5e+03", "MSE 2.5e+03"]
    assert [t.get_text() for t in found[0].get_yticklabels()] == ["age", "sex", "chol"]
    assert [t.get_text() for t in found[1].get_yticklabels()] == [""] * 3
    assert found[0].get_xlim() == found[2].get_xlim()
    assert found[0].get_xlim()[1] < 5, "a reconstruction far away doesn't stretch the panel"


def test_a_wide_table_says_that_it_is_cut(fake):
    path = fake.run("none", leakage=0.5, signals=True) / "artifacts" / "leakage_r1_c0_server_operator.npz"
    np.savez(path, originals=np.zeros((1, 60)), reconstructions=np.zeros((1, 60)))
    figure: Any = figures.traces(load(fake.root), "server_operator")
    assert "first 40 features" in figure.get_suptitle()
    assert len(panels(figure)[0].get_lines()[0].get_xdata()) == 40


def test_pictures_or_nothing_are_no_traces(fake):
    assert figures.traces(load(fake.root), "server_operator") is None
    fake.run("none", images=2)
    assert figures.traces(load(fake.root), "server_operator") is None
