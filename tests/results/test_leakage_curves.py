"""Figures of leakage against one setting."""

import json
from dataclasses import replace
from typing import Any

import pytest

from privbench.benchmarks.results.curves import draw
from privbench.benchmarks.results.figures import leakage
from privbench.benchmarks.results.leakage_curves import AXES, by_epsilon, by_round, by_setting, leakage_curves
from privbench.benchmarks.results.load import Refused, load
from privbench.benchmarks.results.report import report
from privbench.benchmarks.results.unattacked import unattacked


def dp(fake, epsilon: float, psnr: float, seed: int = 0):
    said = {"unit": "record", "adversary": "server_operator", "epsilon": epsilon, "delta": 1e-3, "simulated": True}
    settings = {"defense.privacy.epsilon": epsilon}
    return fake.run("dp_local", leakage=psnr, seed=seed, settings=settings, privacy=[said])


def sized(fake, size: int, psnr: float, defense: str = "none", seed: int = 0, settings: Any = None):
    """A run whose attacked updates have ``size`` records each."""
    path = fake.run(defense, leakage=psnr, seed=seed, settings=settings or {"federation.local.batch_size": size})
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    text = "".join(json.dumps({**m, "records": size} if m["adversary"] else m) + "\n" for m in lines)
    (path / "metrics.jsonl").write_text(text)
    return path


def one(found) -> Any:
    (curves,) = found
    return curves


def points(panel) -> dict[str, list[tuple[float, float | None]]]:
    return {name: [(x, e.mean) for x, _, e in line] for name, line in panel.lines.items()}


def test_epsilon_with_controls_at_infinity(fake):
    for epsilon, psnr in ((8.0, 12.0), (1.0, 6.0), (64.0, 15.0)):
        dp(fake, epsilon, psnr)
    fake.run("none", leakage=24.0)
    fake.run("clip_only", leakage=20.0)
    curves = one(by_epsilon(load(fake.root).arms()))
    (panel,) = curves.panels
    assert panel.title == "record-level, seen by server operator"
    assert points(panel)["dp_local"] == [(1, 6.5), (8, 12.5), (64, 15.5)]
    assert points(panel)["none"] == [(float("inf"), 24.5)]
    assert set(panel.guesses.values()) == {9.5}
    figure: Any = draw(curves)
    axes, below = figure.axes
    assert [t.get_text() for t in below.get_xticklabels()] == ["1", "8", "64", "∞"]
    assert (below.get_ylabel(), set(panel.accuracy)) == ("accuracy (%)", {"none", "dp_local", "clip_only"})
    assert {y for line in points(replace(panel, lines=panel.accuracy)).values() for _, y in line} == {78.0}
    assert panel.chance == 10.0
    ends = {c.get_label(): c for c in axes.containers}
    assert {"dp_local", "none", "clip_only"} <= set(ends)
    last = [float(c.lines[0].get_xdata()[0]) for c in axes.containers if len(c.lines[0].get_xdata()) == 1]
    assert len(set(last)) == 2, "arms without a guarantee don't hide each other"
    assert min(last) > 64
    assert "simulated" in figure.get_suptitle()


def test_one_epsilon_is_no_curve(fake):
    dp(fake, 8.0, 12.0)
    fake.run("none", leakage=24.0)
    assert list(by_epsilon(load(fake.root).arms())) == []


def test_units_and_adversaries_of_epsilon_have_panels_of_their_own(fake):
    for epsilon in (1.0, 8.0):
        dp(fake, epsilon, 10.0)
    for epsilon in (2.0, 4.0):
        said = {"unit": "client", "adversary": "server_operator", "epsilon": epsilon, "delta": 1e-3, "simulated": False}
        fake.run("krum", leakage=9.0, settings={"defense.privacy.epsilon": epsilon}, privacy=[said])
    curves = one(by_epsilon(load(fake.root).arms()))
    assert [p.title for p in curves.panels] == [
        f"{unit}-level, seen by server operator" for unit in ("client", "record")
    ]
    client, record = (points(p) for p in curves.panels)
    assert [x for x, _ in client["krum"]] == [2, 4]
    assert [x for x, _ in record["dp_local"]] == [1, 8]
    assert "krum" not in record, "its guarantee is of another unit, and stands in another panel"


def test_large_epsilons_are_powers_of_ten(fake):
    for epsilon in (1.0, 1e3, 1e4, 1e6):
        dp(fake, epsilon, 10.0)
    figure: Any = draw(one(by_epsilon(load(fake.root).arms())))
    assert [t.get_text() for t in figure.axes[-1].get_xticklabels()] == ["1", "1000", "$10^{4}$", "$10^{6}$"]


def test_records_behind_an_update(fake):
    for size in (4, 1, 2):
        for seed in (0, 1):
            sized(fake, size, 20.0 - size + seed, seed=seed)
            sized(fake, size, 12.0 - size + seed, "krum", seed=seed)
    curves = one(by_setting(load(fake.root).arms(), AXES[0]))
    (panel,) = curves.panels
    assert points(panel) == {
        "none": [(1, 20.0), (2, 19.0), (4, 17.0)],
        "krum": [(1, 12.0), (2, 11.0), (4, 9.0)],
    }
    figure: Any = draw(curves)
    assert "2 seeds" in figure.get_suptitle()
    assert any(c.has_yerr for c in figure.axes[0].containers)
    guess = next(x for x in figure.axes[0].lines if x.get_label() == "best trivial guess")
    assert list(guess.get_ydata()) == [9.5, 9.5, 9.5]


def test_a_second_setting_that_differs_is_another_curve_or_none(fake):
    sized(fake, 1, 20.0, settings={"federation.local.batch_size": 1, "federation.rounds": 5})
    sized(fake, 2, 19.0, settings={"federation.local.batch_size": 2, "federation.rounds": 6})
    assert list(leakage_curves(load(fake.root))) == []


def test_settings_of_one_defense_tell_its_lines_apart(fake):
    for size in (1, 2):
        for clip in (1.0, 2.0):
            settings = {"federation.local.batch_size": size, "defense.privacy.clip": clip}
            sized(fake, size, 20.0 - size, "clip_only", settings=settings)
    (panel,) = one(by_setting(load(fake.root).arms(), AXES[0])).panels
    assert set(panel.lines) == {"clip_only, clip=1", "clip_only, clip=2"}


def test_local_steps_come_from_the_configuration(fake):
    for steps in (1, 4):
        config = {"task": {"classes": 10}, "federation": {"local": {"steps": steps}}}
        fake.run(leakage=20.0 - steps, settings={"federation.local.steps": steps}, config=config)
    curves = one(by_setting(load(fake.root).arms(), AXES[1]))
    assert (curves.name, points(curves.panels[0])["none"]) == ("leakage_by_steps", [(1, 19.5), (4, 16.5)])


def lose(path, *clients: int, round: int = 1):
    """Victims of whom nothing was seen."""
    row = {"metric": "psnr_db", "round": round, "adversary": "server_operator", "value": None}
    with (path / "metrics.jsonl").open("a") as file:
        for client in clients:
            file.write(json.dumps({**row, "client": client, "status": "not_applicable", "reason": "no record"}) + "\n")


def test_a_title_says_which_means_are_over_fewer_victims(fake):
    fake.run("none", leakage=24.0)
    dp(fake, 8.0, 12.0)
    for epsilon in (1.0, 2.0):
        lose(dp(fake, epsilon, 6.0), 2, 3)
    figure: Any = draw(one(by_epsilon(load(fake.root).arms())))
    said = " ".join(figure.get_suptitle().split()).replace("_ ", "_")
    bars: Any = leakage(load(fake.root))
    shown = " ".join(bars.get_suptitle().split()).replace("_ ", "_")
    assert "server operator: dp_local, epsilon=1 without 2 of 4 victims (n/a)" in shown
    assert "epsilon=8" not in shown
    assert "dp_local without 2 of 4 victims (n/a) at 1, 2 (record-level, seen by server operator)" in said


def test_rounds_lack_their_own_victims(fake):
    path = fake.run(leakage=20.0)
    row = {"metric": "psnr_db", "round": 5, "client": 0, "adversary": "server_operator", "value": 12.0}
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    lose(path, 1, round=5)
    (panel,) = one(by_round(load(fake.root).arms())).panels
    assert panel.unattacked == ["none without 1 of 2 victims (n/a) at 5"]


def test_where_all_means_lack_as_many_it_is_said_once():
    assert unattacked([("none", "1", (1, 6)), ("krum", "8", (1, 6))]) == ["1 of 6 victims n/a throughout"]
    assert unattacked([("none", "", (0, 6)), ("krum", "", (1, 6))]) == ["krum without 1 of 6 victims (n/a)"]
    assert unattacked([("none", "", (0, 6)), ("krum", "", (0, 3))]) == []


def test_rounds_of_one_run(fake):
    path = fake.run(leakage=20.0)
    with (path / "metrics.jsonl").open("a") as file:
        for client, value in ((0, 12.0), (1, None)):
            row = {"metric": "psnr_db", "round": 5, "client": client, "adversary": "server_operator", "value": value}
            file.write(json.dumps({**row, "status": None if value else "failed"}) + "\n")
    curves = one(by_round(load(fake.root).arms()))
    (panel,) = curves.panels
    assert points(panel)["none"] == [(1, 20.5), (5, None)]
    figure: Any = draw(curves)
    assert "none failed at 5" in figure.get_suptitle(), "no mean over survivors, and it is said"


def test_the_error_of_signals_has_its_own_axis_and_the_least_guess(fake):
    for steps in (1, 4):
        config = {"federation": {"local": {"steps": steps}}}
        fake.run(leakage=0.1 * steps, signals=True, settings={"federation.local.steps": steps}, config=config)
    curves = one(by_setting(load(fake.root).arms(), AXES[1]))
    figure: Any = draw(curves)
    assert figure.axes[0].get_ylabel().startswith("MSE")
    assert curves.panels[0].guesses == {1.0: 1.25, 4.0: 1.25}


def test_a_report_has_them_and_removes_stale_ones(fake):
    dp(fake, 8.0, 12.0)
    figures = report(fake.root).folder / "figures"
    (figures / "leakage_by_epsilon.png").write_bytes(b"stale")
    report(fake.root)
    assert not (figures / "leakage_by_epsilon.png").exists()
    dp(fake, 1.0, 6.0)
    assert {"leakage_by_epsilon.png", "leakage_by_epsilon.pdf"} <= {f.name for f in report(fake.root).files}
    dp(fake, 2.0, 6.0, seed=1)
    with pytest.raises(Refused):
        list(leakage_curves(load(fake.root)))
