"""What an aggregator refuses to be configured with, and what no host can name."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privbench.benchmarks.build import ConfigError, describe
from privbench.defenses.accounting import ClientLevel
from privbench.defenses.aggregation import ClippedMean, FixedDenominatorMean, Mean
from privbench.defenses.release import CentralGaussian, Unchanged
from privbench.defenses.tee.protocol import binding, resume, sealing
from privbench.defenses.tee.protocol.manifest import Manifest, Refused
from privbench.defenses.tee.protocol.receipts import read, sign


def test_an_aggregator_refuses_a_manifest_that_is_not_everybodys(house: Any):
    house.signatures[1] = house.signatures[0]
    with pytest.raises(Refused, match="not_countersigned: the signature of client 1"):
        house.new()
    house.signatures.pop()
    with pytest.raises(Refused, match="not_countersigned: 2 signatures of 3"):
        house.new()


def test_an_aggregator_refuses_a_roster_that_is_not_enrolled(house: Any):
    house.manifest = replace(house.manifest, roster=house.manifest.roster[::-1])
    with pytest.raises(Refused, match="unsigned_roster"):
        house.new()


def test_an_aggregator_refuses_another_model(house: Any):
    house.model = house.model + 1
    with pytest.raises(Refused, match="wrong_model"):
        house.new()


@pytest.mark.parametrize("change", [{"more": 1}, {"seed": None}, {"roster": "x"}, {"run": 3}, {"layout": []}])
def test_malformed_manifests_are_refused(house: Any, change: dict[str, Any]):
    import json

    raw = json.loads(house.manifest.canonical())
    assert Manifest.read(raw) == replace(house.manifest, layout=raw["layout"], facts=raw["facts"], version=1)
    changed = {k: v for k, v in {**raw, **change}.items() if v is not None}
    with pytest.raises(Refused, match="malformed_manifest"):
        Manifest.read(changed)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_no_bytes_crash_the_reader(raw: bytes):
    with pytest.raises(Refused):
        sealing.read(raw)


@given(st.integers(1, 40), st.data())
def test_paths_lead_to_the_root_from_their_own_place_alone(size: int, data: st.DataObject):
    leaves = [bytes([n]) * 32 for n in range(size)]
    tree = binding.levels(leaves)
    index = data.draw(st.integers(0, size - 1))
    path = binding.path(tree, index)
    assert binding.root(index, size, leaves[index], path) == tree[-1][0]
    other = data.draw(st.integers(0, size - 1))
    if other != index:
        assert binding.root(other, size, leaves[index], path) != tree[-1][0]
    assert binding.root(index, size, leaves[index], [*path, bytes(32)]) is None
    assert binding.root(size, size, leaves[index], path) is None


def test_parts_of_a_binding_cannot_be_moved():
    args = (b"aggregator", b"m" * 32, b"k" * 32, b"s" * 32, b"r" * 32)
    made = {binding.report_data(*args)}
    for n, part in enumerate(args):
        changed = [*args]
        changed[n] = part[:-1]
        made.add(binding.report_data(*changed))
    made.add(binding.report_data(b"aggregatorm", b"m" * 31, *args[2:]))
    assert len(made) == 7
    assert len(next(iter(made))) == 64


EVIL = {
    "_target_": "privbench.benchmarks.build._call",
    "target": {"_target_": "privbench.benchmarks.build.resolve", "target": "os.system", "trusted": ["os"]},
    "fields": {"command": "true"},
    "path": "",
    "partial": False,
}


@pytest.mark.parametrize("kind", ["aggregation", "release", "server"])
@pytest.mark.parametrize(
    "found",
    [
        EVIL,
        {"_target_": "privbench.benchmarks.build.resolve", "target": "os.system", "trusted": ["os"]},
        {"_target_": "privbench.defenses.tee.platforms.software.Software"},
        {"_target_": "privbench.defenses.aggregation.mean.clip_factor", "norm": 1.0, "bound": 1.0},
        {"_target_": "privbench.defenses.aggregation.ClippedMean", "clip": EVIL},
        {"_target_": "privbench.defenses.aggregation.Mean", "_partial_": True},
    ],
)
def test_a_host_names_components_and_nothing_else(build_house: Any, kind: str, found: dict[str, Any]):
    with pytest.raises(ConfigError):
        build_house({kind: found})


def test_a_guarantee_that_the_manifest_contradicts_is_refused(build_house: Any):
    private = describe(ClientLevel(delta=1e-3, clip=1.0, noise_multiplier=1.0))
    central = {
        "privacy": private,
        "aggregation": describe(ClippedMean()),
        "release": describe(CentralGaussian()),
        "weighting": "equal",
    }
    assert build_house(central).aggregator.plan is not None
    for change in ({"weighting": "records"}, {"aggregation": describe(Mean())}, {"release": describe(Unchanged())}):
        with pytest.raises(Refused, match="contradicted_plan"):
            build_house({**central, **change})
    shares = describe(ClientLevel(delta=1e-3, clip=1.0, noise_multiplier=1.0, noise="distributed"))
    distributed = {"privacy": shares, "aggregation": describe(FixedDenominatorMean()), "weighting": "equal"}
    assert build_house({**distributed, "least_cohort": 3}).aggregator.plan is not None
    for change in ({"least_cohort": 2}, {"aggregation": describe(Mean())}):
        with pytest.raises(Refused, match="contradicted_plan"):
            build_house({**distributed, "least_cohort": 3, **change})


def asked(house: Any) -> dict[str, Any]:
    return {
        "request": "configure",
        "manifest": house.manifest.canonical(),
        "countersignatures": house.signatures,
        "model": sealing.floats(house.model),
        "stored": None,
    }


@pytest.mark.parametrize("nonce", [b"", bytes(31), bytes(33), "0" * 32, None])
def test_a_nonce_of_another_kind_is_refused_by_name(house: Any, nonce: Any):
    with pytest.raises(Refused, match=r"malformed_nonce: clients \[1\]"):
        house.aggregator.open(1, 1, {0: house.nonces[0], 1: nonce, 2: house.nonces[2]})
    assert house.open(1).round == 1, "the round can still be opened"


def test_an_aggregator_is_configured_once(house: Any, build_house: Any):
    from privbench.defenses.tee.protocol import program

    nobody: Any = None
    made, answer = program._answer(None, house.firmware, asked(house), nobody)
    assert answer == {"round": 0, "locked": False}
    with pytest.raises(Refused, match="out_of_order: configured already"):
        program._answer(made, house.firmware, asked(build_house()), nobody)


def test_no_root_is_named_for_hardware(build_house: Any):
    """A host can't have a state taken up that another root's evidence vouches for."""
    house = build_house()
    opening = house.open()
    answer = house.close(*(house.message(opening, c) for c in range(3)))
    stored = house.stored(opening, answer)
    assert resume.check(stored, house.manifest).round == 1
    with pytest.raises(Refused, match="wrong_state"):
        resume.check({**stored, "state": answer["state"] + b"x"}, house.manifest)
    with pytest.raises(Refused):
        resume.check({**stored, "roots": []}, house.manifest)
    hardware = build_house({"platform": "sev_snp"})
    claimed = read(answer["receipt"])[0]
    forged = sign(replace(claimed, manifest=hardware.manifest.digest.hex()), house.aggregator.signing_key)
    with pytest.raises(Refused, match="evidence"):
        resume.check({**stored, "receipt": forged}, hardware.manifest)
