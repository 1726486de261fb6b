import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from privbench.benchmarks.federation.update import Layout
from privbench.benchmarks.measures.noise import estimate, noise_std, rows
from privbench.defenses import Defense
from privbench.defenses.accounting import ClientLevel, ClientPlan, Facts
from privbench.defenses.aggregation import ClippedMean, FixedDenominatorMean
from privbench.defenses.local import ClientNoise
from privbench.defenses.release import CentralGaussian

K, D = 9, 100_000
FACTS = Facts(K, 10, 1.0, "fixed", (40,) * K, (10,) * K, (4,) * K)
LAYOUT = Layout(("w",), ((D,),), 1)


def mechanism(noise: Any, z: float = 2.0, facts: Facts = FACTS) -> tuple[Defense, ClientPlan]:
    privacy = ClientLevel(delta=1e-3, clip=0.5, noise_multiplier=z, noise=noise)
    if noise == "central":
        stations: dict[str, Any] = {"aggregation": ClippedMean(), "release": CentralGaussian()}
    else:
        stations = {"local": ClientNoise(), "aggregation": FixedDenominatorMean()}
    return Defense(**stations, privacy=privacy), privacy.bind(facts)


@pytest.mark.parametrize(("noise", "std"), [("central", 1 / K), ("distributed", 1 / K), ("local", 1 / math.sqrt(K))])
def test_each_mechanism_adds_what_theory_says(noise, std):
    found = noise_std(*mechanism(noise), LAYOUT, seed=0)
    assert found.theory == pytest.approx(std)
    assert found.measured == pytest.approx(std, rel=5 / math.sqrt(2 * D))
    assert found.low < found.measured < found.high
    assert (found.high - found.low) / std == pytest.approx(2 * 1.96 / math.sqrt(2 * D), rel=0.02)


def test_it_sees_a_mechanism_that_adds_too_little(monkeypatch):
    monkeypatch.setattr(ClientNoise, "send", lambda self, update, *_: update)
    assert noise_std(*mechanism("distributed"), LAYOUT, seed=0).measured == 0


def test_the_interval_holds_in_19_of_20():
    """400 times: between 93% and 97.5% but for a chance of about 1%."""
    generator = torch.Generator().manual_seed(1)
    found = [estimate(torch.randn(30, generator=generator) * 3, 3.0) for _ in range(400)]
    assert 0.925 < sum(f.low <= 3.0 <= f.high for f in found) / 400 < 0.98


def test_a_sampled_cohort_is_measured_at_its_expected_size():
    half = replace(FACTS, participation=0.5, sampling="poisson")
    found = noise_std(*mechanism("local", facts=half), LAYOUT, seed=0)
    assert found.theory == pytest.approx(2.0 * 0.5 * math.sqrt(4) / 4.5)
    assert found.measured == pytest.approx(found.theory, rel=5 / math.sqrt(2 * D))


def test_rows_say_whose_noise_it_is():
    theory, measured = rows(*mechanism("local"), LAYOUT, seed=0, round=10)
    assert (theory["metric"], measured["metric"]) == ("noise_std", "noise_std_measured")
    assert {k: theory[k] for k in ("noise", "cohort", "amplified")} == {
        "noise": "local",
        "cohort": K,
        "amplified": False,
    }
    assert measured["low"] < measured["value"] < measured["high"]
    assert [r["value"] for r in rows(*mechanism("central", z=0.0), LAYOUT, 0, 1)] == [0.0, 0.0]
