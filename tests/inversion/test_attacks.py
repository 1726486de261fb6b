"""The attacks that can be named: every choice of ``conf/leakage`` is one."""

import pytest

from privbench.attacks.leakage.grad_inversion import GradInversion
from privbench.benchmarks.build import describe
from privbench.benchmarks.inversion import invert
from privbench.benchmarks.inversion.attacks import make_attack, options


@pytest.mark.parametrize("name", options())
def test_every_choice_can_be_made(name):
    made = describe(make_attack(name, {}))
    for field, value in options()[name].items():
        if field != "_target_":
            assert made[field] == value


def test_grad_inversion_attacks(normed):
    made = make_attack("grad_inversion", {"iterations": 2, "restarts": 1})
    assert isinstance(made, GradInversion)
    assert (made.l2, made.bn, made.consistency) == (1e-3, 1e-2, 1e-2)
    found = invert(normed.model, normed.gradient(), (1, 12, 12), records=4, attack=made)
    assert found.x.shape == normed.x.shape
