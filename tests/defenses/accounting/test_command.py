"""``privbench epsilon`` and ``privbench noise``: what they answer, and what they refuse by name."""

import json
import math

import pytest

from privbench.defenses.accounting.accountant import Terms
from privbench.defenses.accounting.command import epsilon, noise
from privbench.defenses.accounting.prv import PRV

ROW = "--sampling-rate 0.01 --noise-multiplier 4 --steps 10000 --delta 1e-5"


def told(capsys: pytest.CaptureFixture[str], command, line: str) -> dict:
    assert command([*line.split(), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_epsilon(capsys):
    found = told(capsys, epsilon, ROW)
    assert 0.946 <= found["epsilon"] <= 0.967
    assert found["rdp_epsilon"] == pytest.approx(1.035, rel=5e-3)
    assert (found["delta"], found["accountant"], found["adjacency"]) == (1e-5, "pld", "add_remove")
    assert (found["sampling"], found["history"]) == ("poisson", [[0.01, 4.0, 10000]])
    assert told(capsys, epsilon, f"{ROW} --accountant rdp")["epsilon"] == found["rdp_epsilon"]
    assert epsilon([*ROW.split()]) == 0
    assert "0.947" in (out := capsys.readouterr().out)
    assert "add or remove one unit" in out


def test_without_sampling_or_noise(capsys):
    whole = told(capsys, epsilon, "--sampling-rate 1 --noise-multiplier 5 --steps 100 --delta 1e-5 --adjacency replace")
    assert whole["sampling"] == "none"
    assert whole["epsilon"] == Terms().epsilon([((1.0, 2.5), 100)], 1e-5)
    bare = told(capsys, epsilon, "--sampling-rate 0.1 --noise-multiplier 0 --steps 1 --delta 1e-5")
    assert bare["epsilon"] is bare["rdp_epsilon"] is None
    assert "infinite" in bare["reason"]


def test_an_accountant_that_overflows_is_not_taken_for_a_step_without_noise(capsys, monkeypatch):
    monkeypatch.setattr(PRV, "epsilon", lambda *_: math.inf)  # as it answers here, after 20 s
    line = "--sampling-rate 0.5 --noise-multiplier 0.3 --steps 500 --delta 1e-5 --accountant prv"
    found = told(capsys, epsilon, line)
    assert found["epsilon"] is None
    assert found["reason"].startswith("prv answers infinity where its numbers overflow")
    assert found["rdp_epsilon"] == pytest.approx(1568, rel=5e-3)


def test_a_history_of_steps_that_differ(tmp_path, capsys):
    file = tmp_path / "history.json"
    file.write_text("[[0.01, 4, 5000], [0.02, 4, 100], [0.01, 4, 5000]]")
    found = told(capsys, epsilon, f"--history {file} --delta 1e-5")
    assert found["history"] == [[0.01, 4, 10000], [0.02, 4, 100]]
    assert found["epsilon"] > told(capsys, epsilon, ROW)["epsilon"]
    for content in ("{}", "[[0.1, 1]]", "[[0.1, true, 3]]", "nothing"):
        file.write_text(content)
        assert epsilon(f"--history {file} --delta 1e-5".split()) == 2
        assert f"history = {file}" in capsys.readouterr().err


@pytest.mark.parametrize("steps", ["1e400", "-1e400", "NaN", str(10**400), "0.5"])
def test_a_history_with_numbers_out_of_range(steps, tmp_path, capsys):
    file = tmp_path / "history.json"
    file.write_text(f"[[0.01, 4, {steps}]]")
    assert epsilon(f"--history {file} --delta 1e-5".split()) == 2
    assert "steps = " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ("[[0.01, 1.0, 100], [0.01, 1.0, -99]]", "steps = -99"),
        ("[[0.01, 1.0, 0.5], [0.01, 1.0, 0.5]]", "steps = 0.5"),
        ("[[0.01, 0.3, -1], [0.01, 0.3, 1]]", "steps = -1"),
        ("[[0.01, 4, 1000000000], [0.01, 4, 1]]", "steps = 1000000001"),
    ],
)
def test_no_row_takes_back_another(rows, why, tmp_path, capsys):
    file = tmp_path / "history.json"
    file.write_text(rows)
    assert epsilon(f"--history {file} --delta 1e-5".split()) == 2
    assert why in capsys.readouterr().err


def test_whole_numbers_of_steps_may_have_a_point(tmp_path, capsys):
    file = tmp_path / "history.json"
    file.write_text("[[0.01, 1.0, 100.0]]")
    found = told(capsys, epsilon, f"--history {file} --delta 1e-5")
    assert found["history"] == [[0.01, 1, 100]]
    assert told(capsys, epsilon, "--sampling-rate 0.01 --noise-multiplier 1 --steps 100 --delta 1e-5") == found


@pytest.mark.parametrize("line", ["--noise-multiplier 1e-6", "--noise-multiplier 1e9", "--accountant rdp"])
def test_the_ends_of_the_range_have_a_value(line, capsys):
    given = line if "multiplier" in line else f"{line} --noise-multiplier 1e9"
    for rate in (1, 1e-2, 1e-12):
        for steps in (1, 10**9):
            found = told(capsys, epsilon, f"{given} --sampling-rate {rate} --steps {steps} --delta 1e-5")
            assert found["epsilon"] >= 0


def test_millions_of_steps_are_composed(capsys):
    """Not as a power of the grid's number of points; sigma keeps their sum's noise as it is with fewer."""
    many = told(capsys, epsilon, "--sampling-rate 0.01 --noise-multiplier 40 --steps 1000000 --delta 1e-5")
    few = told(capsys, epsilon, "--sampling-rate 0.01 --noise-multiplier 4 --steps 10000 --delta 1e-5")
    assert many["epsilon"] == pytest.approx(few["epsilon"], rel=0.02)


def test_a_rate_at_which_nothing_is_drawn_has_a_noise_too(capsys):
    found = told(capsys, noise, "--epsilon 1 --sampling-rate 1e-200 --steps 10 --delta 1e-5 --accountant rdp")
    assert 0 <= found["epsilon"] <= 1


def test_noise(capsys):
    found = told(capsys, noise, "--epsilon 3 --sampling-rate 0.01 --steps 10000 --delta 1e-5")
    assert 2.99 <= found["epsilon"] <= 3
    assert found["noise_multiplier"] == found["history"][0][1]
    fixed = "--epsilon 3 --sampling-rate 0.01 --steps 10000 --delta 1e-5 --sampling fixed --adjacency replace"
    assert told(capsys, noise, f"{fixed} --accountant rdp")["noise_multiplier"] > found["noise_multiplier"]


BAD = [
    (epsilon, "--noise-multiplier 4 --steps 10 --delta 1e-5", "sampling_rate is missing"),
    (epsilon, "--sampling-rate 2 --noise-multiplier 4 --steps 10 --delta 1e-5", "sampling_rate = 2.0"),
    (epsilon, "--sampling-rate nan --noise-multiplier 4 --steps 10 --delta 1e-5", "sampling_rate = nan"),
    (epsilon, "--sampling-rate 0.1 --noise-multiplier -1 --steps 10 --delta 1e-5", "noise_multiplier = -1.0"),
    (epsilon, "--sampling-rate 0.1 --noise-multiplier 1 --steps -1 --delta 1e-5", "steps = -1"),
    (epsilon, "--sampling-rate 0.1 --noise-multiplier 1 --steps 1 --delta 0", "delta = 0.0"),
    (epsilon, f"{ROW} --units 100000", "delta = 1e-05: below 1/units"),
    (epsilon, f"{ROW} --sampling fixed", "use accountant rdp"),
    (epsilon, f"{ROW} --sampling fixed --accountant rdp", "adjacency replace alone"),
    (epsilon, f"{ROW} --history none.json", "sampling_rate = 0.01: leave it out"),
    (noise, "--epsilon 0 --sampling-rate 0.1 --steps 1 --delta 1e-5", "epsilon = 0.0: positive"),
    (noise, "--epsilon 1 --sampling-rate 0.1 --steps 0 --delta 1e-5", "steps = 0"),
    (epsilon, "--sampling-rate 0.1 --noise-multiplier 1e400 --steps 10 --delta 1e-5", "noise_multiplier = inf: 0, or"),
    (epsilon, "--sampling-rate 1 --noise-multiplier 1e300 --steps 10 --delta 1e-5", "noise_multiplier = 1e+300: 0, or"),
    (epsilon, "--sampling-rate 0.1 --noise-multiplier 1e-300 --steps 10 --delta 1e-5", "noise_multiplier = 1e-300"),
    (epsilon, f"--sampling-rate 0.1 --noise-multiplier 1 --steps {10**400} --delta 1e-5", "whole number from 0 to"),
    (epsilon, f"--sampling-rate 1 --noise-multiplier 1 --steps {10**12} --delta 1e-5", "steps = 1000000000000"),
    (noise, f"--epsilon 1 --sampling-rate 0.01 --steps {10**12} --delta 1e-5", "steps = 1000000000000"),
    (noise, f"--epsilon 1 --sampling-rate 1 --steps {10**400} --delta 1e-5", "whole number from 0 to"),
    (noise, "--epsilon 1e300 --sampling-rate 1 --steps 10 --delta 1e-5", "epsilon = 1e+300: positive, and at most"),
    (noise, "--epsilon 1e-300 --sampling-rate 1 --steps 10 --delta 1e-5", "no noise multiplier reaches"),
    (noise, "--epsilon 1 --sampling-rate 0.1 --steps 10 --delta 1e-17", "no noise multiplier reaches"),
]


@pytest.mark.parametrize(("command", "line", "why"), BAD)
def test_what_is_refused(command, line, why, capsys):
    assert command(line.split()) == 2
    assert why in capsys.readouterr().err
