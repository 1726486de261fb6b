"""Papers' private settings: each arm has the paper's noise and clip, and an epsilon that agrees with its accounting."""

from collections.abc import Iterator
from math import inf, log
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from opacus.accountants.analysis.rdp import compute_rdp

from privbench.attacks.poisoning import Backdoor
from privbench.benchmarks import experiment, sweep
from privbench.benchmarks.experiment import Experiment
from privbench.defenses.accounting import Facts, RecordLevel

RECORDS, DELTA = 60_000, 1e-5
ORDERS = [1 + k / 10 for k in range(1, 100)] + [*map(float, range(12, 64))]


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    with initialize_config_module("privbench.conf", version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


def built(*overrides: str) -> Experiment:
    return experiment.compose(sweep.plain(compose("config", overrides=[*overrides])))


def plan(made: Experiment) -> Any:
    assert made.defense.privacy is not None
    work = made.federation.local
    facts = Facts(
        1, made.federation.rounds, 1.0, "fixed", (RECORDS,), (work.batch(RECORDS),), (work.local_steps(RECORDS),)
    )
    return made.defense.privacy.bind(facts)


def older(q: float, sigma: float, steps: int) -> float:
    """Mironov 2017, proposition 3: the conversion that papers of the time used."""
    alphas = list(np.atleast_1d(compute_rdp(q=q, noise_multiplier=sigma, steps=steps, orders=ORDERS)))
    return min((r + log(1 / DELTA) / (a - 1) for a, r in zip(ORDERS, alphas, strict=True)), default=inf)


def test_papernot_2021_is_trained_with_the_noise_that_its_epsilon_is_of():
    name = "papernot2021_tanh_mnist"
    made = built(f"experiment=paper/{name}", f"+arm/{name}=dp_sgd")
    bound, privacy = plan(made), made.defense.privacy
    assert isinstance(privacy, RecordLevel)
    assert (privacy.noise_multiplier, privacy.clip, privacy.delta) == (1.23, 0.1, DELTA)
    ledger = [bound.charge(r, [0]) for r in range(1, made.federation.rounds + 1)]
    (history,) = {tuple(map(tuple, s["history"])) for s in bound.statements(ledger)}
    ((q, sigma, steps),) = history
    assert (q, sigma, steps) == (512 / RECORDS, 1.23, 40 * 118)
    stated = bound.statements(ledger)[0]["epsilon"]
    published, old = made.published[0], older(q, sigma, steps)
    assert "2.93" in published.of
    assert old == pytest.approx(2.93, abs=0.08), "the paper's epsilon, by its own conversion"
    assert stated == pytest.approx(2.37, abs=0.02)
    assert stated < old


def test_without_privacy_the_rate_is_one_at_which_relu_learns():
    name = "papernot2021_tanh_mnist"
    plain = built(f"experiment=paper/{name}", f"+arm/{name}=none")
    assert plain.defense.privacy is None
    assert plain.federation.local.learning_rate == 0.05


def test_carlini_2022_sweeps_poisoned_pairs_from_none():
    name = "carlini2022_contrastive"
    for arm, kind, given in (("fixed_patch", "Patch", "bottom_right"), ("random_place", "Patch", "random"),
                             ("targeted_5", "Instance", 0)):  # fmt: skip
        made = built(f"experiment=paper/{name}", f"+arm/{name}={arm}", "poisoning.records=4")
        trigger: Any = made.task.trigger
        assert type(trigger).__name__ == kind
        assert (trigger.place if kind == "Patch" else trigger.record) == given
        assert made.poisoning == Backdoor(records=4)
        assert not made.task.separable
        assert made.published == (), "the paper's figures are of 3 million pairs"
