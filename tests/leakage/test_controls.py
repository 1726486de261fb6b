"""Controls of leakage: whose records they are made of, and that they move no attack."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from privbench.attacks.leakage.attack import Reconstruction
from privbench.benchmarks import attacking
from privbench.benchmarks.measures.case import Case
from privbench.benchmarks.measures.leakage import Leakage
from privbench.benchmarks.progress import Progress
from privbench.benchmarks.run import run
from privbench.benchmarks.sweep import compose

SETTINGS = [
    "task=digits", "model=mlp", "task.records=200", "task/partition=quantity", "task.partition.sizes=[20,60,60,60]",
    "federation.clients=4", "federation.rounds=1", "federation.participation=0.5", "federation.local.batch_size=4",
    "leakage=inverting_gradients", "leakage.attack.iterations=2", "leakage.victims=4", "leakage.most=1",
]  # fmt: skip


def rows_in(x: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Which records of ``x`` are among ``others``."""
    return (x[:, None] == others).flatten(2).all(2).any(1)


@pytest.fixture
def attacked(tmp_path, monkeypatch):
    """The first case and target of a run, and what its clients share."""
    sides, targets, cases = [], [], []

    def used(side, client, rounds, tried):
        sides.append(side)
        return attacking_used(side, client, rounds, tried)

    def batches(several):
        targets.extend(several)
        return attacking_batches(several)

    def case(*fields):
        cases.append(Case(*fields))
        return cases[-1]

    attacking_used, attacking_batches = attacking._used, attacking.batches
    monkeypatch.setattr(attacking, "_used", used)
    monkeypatch.setattr(attacking, "batches", batches)
    outcome = run(compose([*SETTINGS, f"results_dir={tmp_path}"]), {}, Progress("test"))
    assert outcome.status == "complete", outcome.note
    monkeypatch.setattr(attacking, "Case", case)
    attacking.attack(sides[0], targets[:1])  # the run's own is in a worker
    return cases[0], targets[0], sides[0]


def test_no_record_of_the_attacked_cohort_stands_for_its_class(attacked):
    """In the mean of a cohort an attack finds other clients' records too, and they say nothing of the class."""
    case, target, side = attacked
    cohort = side.data.x[target.used]
    assert len(cohort) > len(case.truth.y)
    assert rows_in(case.truth.x, cohort).all()
    assert not rows_in(case.peers.x, cohort).any()
    assert set(case.peers.y.tolist()) == set(case.truth.y.tolist())


def test_where_the_cohort_has_all_records_of_a_class_they_stand_for_it(attacked):
    _, target, side = attacked
    every = torch.arange(len(side.data))
    labels = target.truth.y
    assert set(attacking._peers(side, target.client, labels, every).y.tolist()) == set(labels.tolist())


def test_strangers_are_neither_the_victim_s_nor_distractors(attacked):
    case, target, side = attacked
    own, every = side.data.x[side.shares[target.client]], case.strangers(1000).x
    assert len(case.distractors.y) == attacking.DISTRACTORS
    assert len(every) == len(side.data) - len(own) - attacking.DISTRACTORS
    assert not rows_in(every, torch.cat([own, case.distractors.x])).any()
    assert torch.equal(case.strangers(7).x, every[:7])


@dataclass(frozen=True)
class Drawn:
    """Records from the attack's own stream."""

    needs: frozenset[str] = frozenset()

    def reconstruct(self, view, observation, generator):
        x = torch.randn(observation.records, *view.public.shape, generator=generator)
        return Reconstruction(x, torch.zeros(len(x), dtype=torch.int64), 0.5, 0, (0.5,), x[None])


def test_the_level_at_chance_is_of_the_same_match_and_moves_no_attack(scene, digits):
    """Four reconstructions of four records: a stranger that is matched is identified more often than 1 in 4."""
    s, asked = scene(records=4), []

    def strangers(count):
        asked.append(count)
        return digits.take(torch.arange(7, 7 + count))

    def case():
        return Case(s.view(), 1, 0, s.truth, torch.Generator().manual_seed(0), digits.take(torch.arange(4, 7)))

    found = []
    for attacked in (case(), replace(case(), strangers=strangers)):
        rows, arrays = Leakage(Drawn()).measure(attacked)
        found.append(({r["metric"]: r["value"] for r in rows}, arrays["reconstructions"]))
    (without, one), (value, two) = found
    np.testing.assert_array_equal(one, two)
    assert value["psnr_db"] == without["psnr_db"]
    assert value["identified"] == without["identified"]
    assert asked == [4, 256]
    assert 0.3 < value["identified_chance"] < 0.6
    assert value["identification_rank_chance"] < 2.5
    assert "identified_chance" in without, "the three others stand in"
