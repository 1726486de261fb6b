"""Peak, area and lifespan of a backdoor, and its cost in accuracy, from success rates that are known."""

import json
from pathlib import Path

import pytest

from privbench.benchmarks.results import table as tables
from privbench.benchmarks.results.durability import change, durability
from privbench.benchmarks.results.load import load
from privbench.benchmarks.results.table import table

STOP = {"poisoning": {"_target_": "privbench.attacks.poisoning.Backdoor", "schedule": {"stop": 3}}}


def rates(path: Path, values: dict[int, float]) -> None:
    """Replace a run's success rates."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line["metric"] != "asr"]
    empty = {"client": None, "adversary": None}
    kept += [{"metric": "asr", "round": n, "value": v, **empty} for n, v in values.items()]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))


@pytest.mark.parametrize(
    ("values", "lifespan", "survives"),
    [
        ({1: 0.0, 2: 0.8, 3: 1.0, 4: 0.6, 5: 0.4}, 1, False),
        ({1: 0.0, 2: 0.8, 3: 1.0, 4: 0.6, 5: 0.5}, 2, True),
        ({1: 0.0, 2: 0.8, 3: 1.0, 4: 0.4, 5: 0.9}, 0, False),
    ],
)
def test_a_backdoor_lives_until_it_first_falls_below_a_half(fake, values, lifespan, survives):
    rates(fake.run(poisoning="backdoor", settings=STOP), values)
    (arm,) = load(fake.root).arms()
    found = durability(arm)
    assert found.lifespan.values == (lifespan,)
    assert found.survives == survives
    assert found.peak.values == (1.0,)
    ends = (values[1] + values[5]) / 2
    assert found.area.values == pytest.approx([(ends + values[2] + values[3] + values[4]) / 4])


def test_rounds_that_were_not_evaluated_are_bridged(fake):
    rates(fake.run(poisoning="backdoor"), {1: 0.0, 3: 0.5, 5: 1.0})
    (arm,) = load(fake.root).arms()
    assert durability(arm).area.values == pytest.approx([0.5])


def test_an_attack_that_goes_on_has_no_lifespan(fake):
    fake.run(poisoning="backdoor")
    (arm,) = load(fake.root).arms()
    assert durability(arm).lifespan.state == "absent"
    assert not any("lifespan" in header for header in table(load(fake.root)).headers)


def test_the_table_says_how_long_and_what_it_cost(fake):
    fake.run(accuracy=0.9)
    rates(fake.run(poisoning="backdoor", accuracy=0.85, settings=STOP), {1: 0.0, 2: 1.0, 3: 1.0, 4: 1.0, 5: 1.0})
    results = load(fake.root)
    shown = table(results)
    lived = dict(zip([h.replace("\n", " ") for h in shown.headers], shown.rows[-1], strict=True))
    assert lived["lifespan (rounds)"].startswith("≥ 2")
    assert lived["peak (%)"] == "100.0"
    record = next(r for r in shown.records if r["poisoning"] == "backdoor")
    assert (record["lifespan_rounds_mean"], record["lifespan_censored"]) == (2.0, True)


def test_accuracy_is_compared_seed_by_seed_with_the_twin(fake):
    for seed in (0, 1):
        fake.run(seed=seed, accuracy=0.9)
        fake.run(seed=seed, poisoning="backdoor", accuracy=0.85)
        fake.run(seed=seed, defense="krum", poisoning="backdoor")
    results = load(fake.root)
    arms = {(a.defense, a.poisoned): a for a in results.arms()}
    attacked, plain = arms["none", True], arms["none", False]
    mine, theirs = attacked.final("accuracy").values, plain.final("accuracy").values
    expected = [a - b for a, b in zip(mine, theirs, strict=True)]
    assert change(attacked, "accuracy", results).values == pytest.approx(expected)
    assert change(plain, "accuracy", results).state == "absent"
    assert change(arms["krum", True], "accuracy", results).state == "absent", "no run without the poisoner"


@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        ({}, 15),
        ({"start": 5, "every": 3}, 14),
        ({"start": 5, "every": 20}, 5),
        ({"start": 4, "probability": 1e-9}, None),
    ],
)
def test_a_life_begins_after_the_last_attacked_round(fake, schedule, last):
    """The stop of a schedule isn't always attacked: of rounds 5, 8, 11, 14 the last is before a stop at 15."""
    stop = {"poisoning": {"_target_": "privbench.attacks.poisoning.Backdoor", "schedule": {"stop": 15, **schedule}}}
    rates(fake.run(poisoning="backdoor", settings=stop, rounds=20), dict.fromkeys(range(1, 21), 1.0))
    (arm,) = load(fake.root).arms()
    lived = durability(arm).lifespan
    assert lived.values == (() if last is None else (20 - last,))


def test_each_arm_is_followed_once(fake, monkeypatch):
    """A table of many arms, rounds and seeds takes long enough."""
    for defense in ("none", "krum"):
        for seed in (0, 1):
            fake.run(defense, seed=seed)
            fake.run(defense, "backdoor", seed=seed, settings=STOP)
    asked: list[tuple[str, str]] = []
    for name in ("durability", "change"):
        usual = getattr(tables, name)

        def counting(arm, *more, name=name, usual=usual):
            asked.append((name, arm.key))
            return usual(arm, *more)

        monkeypatch.setattr(tables, name, counting)
    results = load(fake.root)
    table(results)
    assert sorted(asked) == sorted((n, a.key) for a in results.arms() for n in ("durability", "change"))
