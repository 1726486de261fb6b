"""Attacks against defenses as a matrix and as panels."""

import pytest

from privbench.benchmarks.results import figures
from privbench.benchmarks.results.load import load
from privbench.benchmarks.results.matrix import accuracy_matrix, backdoor_matrix, by_attack, cells


def grid(fake, attacks=("backdoor", "replacement", "scaled"), defenses=("none", "krum", "clip_only", "dp_local")):
    for defense in defenses:
        fake.run(defense=defense)
        for place, attack in enumerate(attacks):
            fake.run(defense=defense, poisoning=attack, asr=0.1 * place + (0.5 if defense == "none" else 0.2))
    return load(fake.root)


def test_a_cell_is_the_final_rate_of_its_arm(fake):
    results = grid(fake)
    found = cells(results)
    assert found is not None
    assert [*found] == ["backdoor", "replacement", "scaled"]
    drawn = backdoor_matrix(results)
    assert drawn is not None
    axes = drawn.axes[0]
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    for i, row in enumerate(found.values()):
        for j, arm in enumerate(row.values()):
            (rate,) = arm.final("asr").values
            assert shown[j, i] == f"{100 * rate:.0f}"


def test_the_settings_in_which_attacks_of_one_kind_differ_are_in_their_names(fake):
    for defense in ("none", "krum"):
        for clients in (2, 4):
            fake.run(defense=defense, poisoning="backdoor", settings={"poisoning.clients": clients})
    found = cells(load(fake.root))
    assert found is not None
    assert [*found] == ["backdoor, clients=2", "backdoor, clients=4"]


def test_attacks_without_a_trigger_are_a_matrix_of_what_they_cost(fake):
    for defense in ("none", "krum"):
        fake.run(defense=defense, accuracy=0.9)
        for attack, left in (("alie", 0.8), ("ipm", 0.3)):
            fake.run(defense=defense, poisoning=attack, accuracy=left, asr=None)
    results = load(fake.root)
    assert cells(results) is None
    found = cells(results, backdoors=False)
    assert found is not None
    assert [*found] == ["alie", "ipm"]
    drawn = dict(figures.every(results))["accuracy_matrix"]
    assert [text.get_text() for text in drawn.axes[0].texts] == ["-10", "-10", "-58", "-58"]


@pytest.mark.parametrize("defenses", [("none", "krum"), ("none", "krum", "clip_only", "dp_local", "dp_central")])
@pytest.mark.parametrize("seeds", [1, 2])
def test_no_word_of_a_matrix_is_cut_off(fake, defenses, seeds):
    """Long names of attacks leave the axes, over which a title is centred, little of the figure."""
    for defense in defenses:
        for seed in range(seeds):
            fake.run(defense=defense, seed=seed)
            for name in ("model_replacement", "constrain_and_scale"):
                fake.run(defense=defense, poisoning=name, seed=seed)
                fake.run(defense=defense, poisoning=f"{name}_untargeted", seed=seed, asr=None)
    results = load(fake.root)
    for drawn in (backdoor_matrix(results), accuracy_matrix(results)):
        assert drawn is not None
        drawn.draw_without_rendering()
        room, axes = drawn.bbox, drawn.axes[0]
        words = [*drawn.texts, axes.title, *axes.get_xticklabels(), *axes.get_yticklabels()]
        for box in [w.get_window_extent() for w in words if w.get_text()]:
            assert box.x0 >= room.x0
            assert box.x1 <= room.x1
            assert box.y0 >= room.y0
            assert box.y1 <= room.y1
        said = drawn.get_suptitle().replace("\n", " ")
        assert said.endswith("n = 1 seed, no interval" if seeds == 1 else "n = 2 seeds, ± half a 95% t-interval")


def test_one_attack_or_one_defense_is_no_matrix(fake):
    for defense in ("none", "krum"):
        fake.run(defense=defense, poisoning="backdoor")
    fake.run(defense="none", poisoning="none")
    assert cells(load(fake.root)) is None
    assert "backdoor_matrix" not in dict(figures.every(load(fake.root)))


def test_many_arms_get_a_panel_an_attack(fake):
    results = grid(fake)
    drawn = dict(figures.every(results))
    assert "backdoor_matrix" in drawn
    panels = [a for a in drawn["asr_over_rounds"].axes if a.get_visible()]
    assert [a.get_title() for a in panels] == ["backdoor", "replacement", "scaled"]
    lines = {line.get_label(): line.get_color() for line in panels[0].lines}
    assert lines == {line.get_label(): line.get_color() for line in panels[2].lines}, "a defense looks alike in each"
    assert by_attack(results) is not None
