"""Manifests as an auditor finds them: signed, well-formed, and with a plan whose stations give its guarantee."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from privbench.defenses.tee.protocol.agreed import _differs
from privbench.defenses.tee.protocol.audit import audit

from .conftest import Forge, failed

NO_PRIVACY = {
    "privacy": None,
    "aggregation": {"_target_": "privbench.defenses.aggregation.Mean"},
    "release": {"_target_": "privbench.defenses.release.Unchanged"},
}


def test_another_manifest_is_refused(forge: Forge) -> None:
    forge.manifest = replace(forge.manifest, least_cohort=1)
    (forge.folder / "manifest.json").write_bytes(forge.manifest.canonical())
    bound = {"report.report_data", "report.host_data", "run"}
    assert set(failed(forge)) == {"countersignatures", *bound}
    forge.countersign(forge.clients)
    assert set(failed(forge)) == bound


@pytest.mark.parametrize(
    "changes",
    [
        {"platform": "tdx"},
        {"measurements": ()},
        {"measurements": ("00",)},
        {"roster": ("00" * 32,)},
        {"salt": "zz"},
        {"facts": {}},
        {"privacy": {"delta": 1}},
        {"aggregation": {"clip": 1}},
        {"layout": {"names": 3}},
        {"recipients": ("zz" * 32,)},
        {"recipients": ("00" * 31,)},
    ],
)
def test_a_malformed_manifest_is_refused(forge: Forge, changes: dict[str, Any]) -> None:
    (forge.folder / "manifest.json").write_bytes(replace(forge.manifest, **changes).canonical())
    assert failed(forge) == ["manifest"]


def test_a_manifest_has_one_spelling(forge: Forge) -> None:
    path = forge.folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()), indent=1))
    assert failed(forge) == ["manifest"]


def test_a_roster_that_the_authority_did_not_sign(another: Callable[..., Forge]) -> None:
    assert failed(another(changes={"authority": "00" * 32})) == ["roster"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"_target_": "privbench.benchmarks.run.main"}, "plan"),
        ({"_target_": "os.system"}, "plan"),
        ({"clip": {"_target_": "privbench.benchmarks.run.main"}}, "plan"),
        ({"clip": [{"_target_": "privbench.benchmarks.run.main"}]}, "plan"),
        ({"_partial_": True}, "plan"),
        ({"delta": 0.9}, "plan"),
        ({"_target_": "privbench.defenses.accounting.RecordLevel"}, "mechanism"),
    ],
)
def test_a_manifest_builds_nothing_but_a_plan(forge: Forge, changes: dict[str, Any], expected: str) -> None:
    privacy = {**(forge.manifest.privacy or {}), **changes}
    (forge.folder / "manifest.json").write_bytes(replace(forge.manifest, privacy=privacy).canonical())
    assert expected in failed(forge)


@pytest.mark.parametrize(
    "changes",
    [
        {"release": {"_target_": "privbench.defenses.release.Unchanged"}},
        {"aggregation": {"_target_": "privbench.defenses.aggregation.Mean"}},
        {"aggregation": {"_target_": "privbench.defenses.aggregation.ClippedMean", "clip": 1.0}},
        {"aggregation": {"_target_": "privbench.benchmarks.run.main"}},
        {"layout": {"names": ["w", "running_mean"], "shapes": [[3], [3]], "parameters": 1}},
    ],
)
def test_a_plan_needs_its_stations(another: Callable[..., Forge], changes: dict[str, Any]) -> None:
    assert failed(another(changes=changes)) == ["mechanism"]


def test_a_run_without_a_plan_states_no_epsilon(another: Callable[..., Forge], honest: Forge) -> None:
    forge = another(changes=NO_PRIVACY)
    assert failed(forge) == []
    forge.resign(3, statements=honest.receipt(3).statements)
    assert failed(forge) == ["epsilon"]


TRAINING = {
    "model": {"_target_": "privbench.benchmarks.tasks.models.MLP"},
    "inputs": {"name": "digits", "shape": [1, 8, 8], "classes": ["0", "1"], "domain": "image"},
    "task": "privbench.benchmarks.tasks.classification.Classification",
    "work": {"_target_": "privbench.benchmarks.federation.settings.LocalWork"},
    "local": {"_target_": "privbench.defenses.local.Local"},
}
ATTESTED = {"client_measurements": ("00" * 48,), "training": TRAINING}


def test_a_manifest_of_attested_clients_holds(another: Callable[..., Forge], honest: Forge) -> None:
    """Their evidence is not in the folder, and the audit says so."""
    forge = another(changes=ATTESTED)
    assert failed(forge) == []
    assert any("What clients ran" in said for said in audit(forge.folder).cannot_show)
    assert not any("What clients ran" in said for said in audit(honest.folder).cannot_show)


@pytest.mark.parametrize(
    "changes",
    [
        {"client_measurements": ("00",)},
        {"client_measurements": ()},
        {"training": None},
        {"training": {"model": TRAINING["model"]}},
        {"training": {**TRAINING, "more": 1}},
        {"training": {**TRAINING, "task": 1}},
        {"training": {**TRAINING, "local": "Local"}},
    ],
)
def test_malformed_fields_of_attested_clients_are_refused(another: Callable[..., Forge], changes: Any) -> None:
    assert failed(another(changes={**ATTESTED, **changes})) == ["manifest"]


@pytest.mark.parametrize("local", ["local.DPSGD", "local.ClientNoise", "aggregation.Mean", "local.Nothing"])
def test_a_plan_needs_the_clients_mechanism(another: Callable[..., Forge], local: str) -> None:
    """Central noise counts on clients that add none of their own."""
    training = {**TRAINING, "local": {"_target_": f"privbench.defenses.{local}"}}
    assert failed(another(changes={**ATTESTED, "training": training})) == ["mechanism"]


@pytest.mark.parametrize(
    ("stated", "found", "same"), [(0.1, 0.1001, True), (0.1, 0.1002, False), (0.0, 1e-4, False), (0.0, 0.0, True)]
)
def test_an_epsilon_may_differ_in_its_last_digit_but_not_vanish(stated: float, found: float, same: bool) -> None:
    history: list[Any] = []
    differs = _differs({"epsilon": stated, "history": history}, {"epsilon": found, "history": history})
    assert (differs is None) is same
