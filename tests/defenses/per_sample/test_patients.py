"""A guarantee for patients: drawn, clipped and counted as a whole."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from privbench.benchmarks.attacking import _used
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.federation import Federation
from privbench.benchmarks.federation.settings import FederationSettings, LocalWork
from privbench.benchmarks.federation.trainer import Trainer
from privbench.benchmarks.federation.update import Layout
from privbench.benchmarks.measures.membership import Membership
from privbench.benchmarks.sweep import compose
from privbench.benchmarks.tasks.classification import Classification
from privbench.benchmarks.tasks.partition import IID, ByGroup
from privbench.benchmarks.tasks.sources import DataMissing
from privbench.benchmarks.tasks.task import Data
from privbench.defenses import Defense
from privbench.defenses.accounting import RecordLevel
from privbench.defenses.local import DPSGD
from privbench.defenses.local.per_sample import Patients, Units

CLIP = 0.3


def level(**given: Any) -> RecordLevel:
    return RecordLevel(**{"delta": 1e-3, "clip": CLIP, "noise_multiplier": 1.0, "unit": "patient", **given})


class Visits(Classification):
    """Digits in which every three records are of one patient; test records are of others."""

    @property
    def raw(self) -> Data:
        data = super().raw
        train, test = (replace(s, group=torch.arange(len(s)) // 3 + k) for s, k in ((data.train, 0), (data.test, 9999)))
        return Data(train, test, replace(data.spec, group="patient"))


@pytest.fixture
def visits(task: Classification) -> Classification:
    return Visits(task.source, ByGroup(), records=120)


def test_units_are_the_records_of_a_patient():
    group = torch.tensor([7, 2, 7, 2, 5, 7, 7])
    found = Patients.of(group, most=3)
    assert len(found) == 3
    x, y = torch.arange(7.0)[:, None], torch.arange(7)
    parts = found.drawn(x, y, torch.tensor([0, 1, 2]), torch.Generator().manual_seed(0))
    assert [p.views for p in parts] == [1, 2, 3]
    assert [sorted(p.y.tolist()) for p in parts[:2]] == [[4], [1, 3]]
    assert len(set(parts[2].y.tolist()) & {0, 2, 5, 6}) == 3
    assert all(torch.equal(p.x[:, 0].long(), p.y) for p in parts)
    assert found.drawn(x, y, torch.zeros(0, dtype=torch.int64), torch.Generator()) == []


def test_records_above_the_most_take_turns():
    found = Patients.of(torch.zeros(10, dtype=torch.int64), most=2)
    x, y = torch.arange(10.0)[:, None], torch.arange(10)
    draw = torch.Generator().manual_seed(0)
    seen = [found.drawn(x, y, torch.tensor([0]), draw)[0].y.tolist() for _ in range(60)]
    assert all(len(set(pair)) == 2 for pair in seen)
    assert {r for pair in seen for r in pair} == set(range(10))


def test_a_patient_moves_the_sum_by_at_most_the_clip(visits, mlp: nn.Module):
    """However many records it has, and each of them on its own would be clipped."""
    layout = Layout.of(mlp)
    trainer = Trainer(mlp, layout, Classification.loss, DPSGD(per_sample="loop"), torch.device("cpu"))
    layout.write(layout.read(mlp), trainer.model)
    records = visits.data.train.take(torch.arange(24))
    trainer.prepared.add(Units(records.x * 9, records.y, views=3), CLIP)
    eight = trainer.gradient.clone()
    trainer.gradient.zero_()
    trainer.prepared.add(Units(records.x[:21] * 9, records.y[:21], views=3), CLIP)
    assert 0.5 * CLIP < float((eight - trainer.gradient).norm()) <= CLIP * 1.0001


def test_steps_draw_patients_and_epsilon_counts_them(visits, mlp: nn.Module):
    work = LocalWork(batch_size=10, epochs=2)
    settings = FederationSettings(clients=2, rounds=3, local=work)
    made = Federation(settings, visits, mlp, Defense(local=DPSGD(), privacy=level()))
    assert made.facts.records == (60, 60)
    assert made.facts.units == (20, 20)
    assert made.facts.steps == (4, 4)
    assert made.plan is not None
    (claim, _) = made.plan.statements([made.plan.charge(1, range(2))])
    assert claim["unit"] == "patient"
    assert claim["sampling_rate"] == 0.5
    assert claim["history"] == [[0.5, 1.0, 4]]
    assert "per-patient" in claim["mechanism"]


def test_training_sees_whole_patients(visits, mlp: nn.Module, monkeypatch: pytest.MonkeyPatch):
    made = Federation(FederationSettings(clients=2, rounds=1), visits, mlp, Defense(local=DPSGD(), privacy=level()))
    seen: list[Units] = []
    monkeypatch.setattr(DPSGD, "gradient", lambda self, trainer, parts, *rest: seen.extend(parts))
    side = made.client_side()
    records = side.data.take(side.shares[0])
    trainer = side.trainer(side.local)
    update = trainer.train(made.start().model, records, side.work, 0, made.plan, 0, 1)
    assert seen
    assert all(part.views == 3 for part in seen)
    assert update.records == 60, "weights stay by records"


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("defense.privacy.unit", {"kind": Classification, "partition": IID()}),
        ("task.partition", {"partition": IID()}),
        ("defense.privacy.delta", {"delta": 0.03}),
    ],
)
def test_what_does_not_fit_is_named(task, mlp, field, change):
    given = {"kind": Visits, "partition": ByGroup(), "delta": 1e-3, **change}
    made = given["kind"](task.source, given["partition"], records=120)
    with pytest.raises(ConfigError) as caught:
        Federation(
            FederationSettings(clients=2, rounds=1),
            made,
            mlp,
            Defense(local=DPSGD(), privacy=level(delta=given["delta"])),
        )
    assert caught.value.field == field


def test_patients_with_test_records_are_refused(task, mlp):
    class Both(Visits):
        @property
        def raw(self) -> Data:
            data = super().raw
            return Data(data.train, replace(data.test, group=torch.arange(len(data.test))), data.spec)

    with pytest.raises(ConfigError, match="training and test records"):
        Federation(
            FederationSettings(clients=2, rounds=1),
            Both(task.source, ByGroup(), records=120),
            mlp,
            Defense(local=DPSGD(), privacy=level()),
        )


def test_groups_stay_together_and_sizes_are_even():
    group = torch.tensor([0] * 8 + [1] * 3 + [2] * 3 + [3] * 2)
    parts = ByGroup().split(torch.zeros(16, dtype=torch.int64), group, 2, torch.Generator().manual_seed(0))
    assert sorted(torch.cat(parts).tolist()) == list(range(16))
    owners = [set(group[p].tolist()) for p in parts]
    assert not owners[0] & owners[1]
    with pytest.raises(ConfigError, match="number of groups"):
        ByGroup().split(group, group, 5, torch.Generator())


@pytest.mark.parametrize(("field", "value"), [("unit", "hospital"), ("per_patient", 0)])
def test_bad_settings_are_named(field, value):
    with pytest.raises(ConfigError) as caught:
        level(**{field: value})
    assert caught.value.field == field


def test_attackers_are_told_nothing_wrong_of_a_client_that_draws_patients(visits, mlp: nn.Module):
    settings = FederationSettings(clients=2, rounds=1, local=LocalWork(batch_size=2, steps=1))
    made = Federation(settings, visits, mlp, Defense(local=DPSGD(), privacy=level()))
    side = made.client_side()
    # One step draws 2 of 20 patients: which 6 of the 60 records isn't public, and no draw of records says it.
    assert made.public.visited(60) == 60
    assert torch.equal(_used(side, 0, [1], {}), side.shares[0])
    with pytest.raises(ConfigError, match="members are single records"):
        Membership().check(made)


def test_leakage_needs_a_number_of_steps_that_is_public(tmp_path):
    asked = ["task=nih_cxr", "task/partition=by_group", "task.source.size=16", "model=mlp", "task.trigger.size=4"]
    asked += ["federation.clients=4", "defense=dp_local_patient", "defense.privacy.delta=1e-4", "leakage=dlg"]
    asked += ["federation.local.batch_size=4", "federation.rounds=1", f"results_dir={tmp_path}"]
    try:
        with pytest.raises(ConfigError) as caught:
            compose(asked)
    except DataMissing as missing:
        pytest.skip(str(missing))
    assert caught.value.field == "federation.local.steps"
    assert compose([*asked, "federation.local.steps=2"]).federation.public.local_steps(200) == 2
