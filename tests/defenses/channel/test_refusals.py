"""Everything that an aggregator or a client refuses, by name. Nothing refused is counted, nothing counted is lost."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from privbench.benchmarks.build import ConfigError, describe
from privbench.defenses.accounting import ClientLevel
from privbench.defenses.aggregation import ClippedMean, FixedDenominatorMean, Mean
from privbench.defenses.release import CentralGaussian, Unchanged
from privbench.defenses.tee.protocol import binding, resume, sealing
from privbench.defenses.tee.protocol.aggregator import Unreleased
from privbench.defenses.tee.protocol.manifest import Manifest, Refused
from privbench.defenses.tee.protocol.opening import Head, Opening
from privbench.defenses.tee.protocol.receipts import read, sign
from privbench.defenses.tee.wire import pack, unpack


def verdicts(answer: dict[str, Any]) -> list[tuple[int, str]]:
    return [(client, name) for client, name, _ in answer["verdicts"]]


def test_good_messages_are_averaged_by_records(house: Any):
    opening = house.open()
    answer = house.close(*(house.message(opening, c) for c in range(3)))
    assert verdicts(answer) == [(0, "accepted"), (1, "accepted"), (2, "accepted")]
    expected = house.model + (1 * 10 + 2 * 20 + 3 * 30) / 60
    assert torch.allclose(sealing.vector(answer["model"]), expected)


Alter = Callable[[Any, Opening], bytes]


def altered(name: str, change: Callable[[bytes], bytes]) -> Alter:
    def make(house: Any, opening: Opening) -> bytes:
        fields = unpack(house.message(opening, 0))
        return pack({**fields, name: change(fields[name])})

    return make


def resigned(**fields: Any) -> Alter:
    """Sealed and signed for another place by the client itself."""
    return lambda house, opening: house.message(opening, 0, **fields)


def swapped(house: Any, opening: Opening) -> bytes:
    fields = unpack(house.message(opening, 0))
    return pack({**fields, "client": 1})


def flip(raw: bytes) -> bytes:
    return raw[:-1] + bytes([raw[-1] ^ 1])


def with_extras(**shape: list[int]) -> Alter:
    """An update with a tensor that nobody agreed on; its shape may not even fit its data."""

    def make(house: Any, opening: Opening) -> bytes:
        fields = unpack(sealing.encode(house.update(0)))
        extras = {name: {"shape": size, "data": bytes(12)} for name, size in shape.items()}
        place = house.place(opening, 0)
        return sealing.sign(
            sealing.enclose(pack({**fields, "extras": extras}), place, opening.kem_key), place, house.keys[0]
        )

    return make


CASES: dict[str, tuple[str, Alter]] = {
    "extras": ("malformed_update", with_extras(clipped=[3])),
    "extras of another shape": ("malformed_update", with_extras(clipped=[7])),
    "another run": ("foreign", resigned(manifest=bytes(32))),
    "a round that is over": ("stale", resigned(round=0)),
    "a round to come": ("foreign", resigned(round=2)),
    "an attempt to come": ("foreign", resigned(attempt=2)),
    "old evidence": ("stale_evidence", resigned(evidence=bytes(32))),
    "another starting model": ("wrong_start", resigned(start_model=bytes(32))),
    "another receipt": ("wrong_start", resigned(previous=b"p" * 32)),
    "another client's number": ("unsigned", swapped),
    "no client's number": ("unknown_client", lambda h, o: pack({**unpack(h.message(o, 0)), "client": 99})),
    "an altered signature": ("unsigned", altered("signature", flip)),
    "altered content": ("unsigned", altered("sealed", flip)),
    "cut content": ("unsigned", altered("sealed", lambda raw: raw[:-1])),
    "sealed for another key": ("unopenable", lambda h, o: h.message(replace(o, kem_key=public_kem()), 0)),
    "a gradient": ("malformed_update", lambda h, o: h.message(o, 0, h.update(0, kind="gradient"))),
    "too long": ("malformed_update", lambda h, o: h.message(o, 0, h.update(0, vector=torch.zeros(9)))),
    "more records": ("inflated_records", lambda h, o: h.message(o, 0, h.update(0, records=1000))),
    "no message": ("malformed", lambda h, o: b"\xff junk"),
    "a field too many": ("malformed", lambda h, o: pack({**unpack(h.message(o, 0)), "more": 1})),
    "a field of another kind": ("malformed", lambda h, o: pack({**unpack(h.message(o, 0)), "round": "1"})),
    "a negative round": ("malformed", lambda h, o: pack({**unpack(h.message(o, 0)), "round": -1})),
}


def public_kem() -> bytes:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.generate().public_key().public_bytes_raw()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_message_out_of_place_is_refused_by_name(house: Any, case: str):
    name, make = CASES[case]
    opening = house.open()
    answer = house.close(make(house, opening), house.message(opening, 1), house.message(opening, 2))
    assert verdicts(answer)[0][1] == name
    assert [v for v in verdicts(answer) if v[1] == "accepted"] == [(1, "accepted"), (2, "accepted")]
    expected = house.model + (2 * 20 + 3 * 30) / 50
    assert torch.allclose(sealing.vector(answer["model"]), expected)


def test_a_message_sent_twice_counts_once(house: Any):
    opening = house.open()
    first = house.message(opening, 0)
    other = house.message(opening, 0, house.update(0, vector=torch.ones(8) * 9))
    answer = house.close(first, first, other, house.message(opening, 1))
    names = [name for client, name in verdicts(answer) if client == 0]
    assert names == ["accepted", "replayed", "replayed"]
    assert torch.allclose(sealing.vector(answer["model"]), house.model + (1 * 10 + 2 * 20) / 30)


def test_the_last_attempts_messages_are_stale_in_the_next(house: Any):
    first = house.open(attempt=1)
    old = house.message(first, 0)
    second = house.open(attempt=2)
    assert first.kem_key != second.kem_key
    answer = house.close(old, house.message(second, 1), house.message(second, 2))
    assert verdicts(answer)[0] == (0, "stale")


def test_a_round_enters_the_chain_once(house: Any):
    opening = house.open()
    house.close(*(house.message(opening, c) for c in range(3)))
    for round, attempt in ((1, 1), (1, 2), (3, 1), (0, 1)):
        with pytest.raises(Refused, match="out_of_order"):
            house.open(round, attempt)
    with pytest.raises(Refused, match="no round is open"):
        house.close()
    house.open(2)
    with pytest.raises(Refused, match="out_of_order"):
        house.open(2, attempt=1)


def test_whoever_joins_and_says_nothing_is_named(house: Any):
    opening = house.open()
    answer = house.close(house.message(opening, 0), house.message(opening, 1))
    assert verdicts(answer)[-1] == (2, "silent")


def test_below_the_least_cohort_nothing_is_released(house: Any):
    with pytest.raises(Refused, match="least_cohort: 1 clients in round 1, at least 2"):
        house.open(clients=[0])
    opening = house.open()
    with pytest.raises(Unreleased, match="least_cohort"):
        house.close(house.message(opening, 0), b"junk")
    # The round did not happen: another attempt at it is the next in the chain.
    opening = house.open(attempt=2)
    answer = house.close(*(house.message(opening, c) for c in range(3)))
    assert torch.allclose(sealing.vector(answer["model"]), house.model + 140 / 60)


def test_a_stranger_to_the_cohort_does_not_join(build_house: Any):
    from privbench.benchmarks.federation.randomness import stream
    from privbench.benchmarks.federation.sampling import cohort

    base = build_house()
    house = build_house({"facts": {**base.manifest.facts, "participation": 0.67}})
    drawn = cohort(3, 0.67, "fixed", stream(0, "cohort", 1))
    stranger = next(c for c in range(3) if c not in drawn)
    with pytest.raises(Refused, match=rf"not_invited: clients \[{stranger}\]"):
        house.open()
    opening = house.open(clients=list(drawn))
    message = house.message(opening, stranger)
    answer = house.close(message, *(house.message(opening, c) for c in drawn))
    assert verdicts(answer)[0] == (stranger, "not_invited")


def test_a_client_accepts_what_was_made_for_it(house: Any):
    opening = house.open()
    for client in range(3):
        house.check(opening, client)


def other_key(opening: Opening) -> Opening:
    return replace(opening, signing_key=Ed25519PrivateKey.generate().public_key().public_bytes_raw())


@pytest.mark.parametrize(
    ("name", "changes", "change"),
    [
        ("foreign", {}, lambda o: replace(o, manifest=bytes(32))),
        ("stale_evidence", {"age": 61.0}, lambda o: o),
        ("nonce_missing", {"nonce": b"n" * 32}, lambda o: o),
        ("nonce_missing", {"path": []}, lambda o: o),
        ("nonce_missing", {}, lambda o: replace(o, root=bytes(32))),
        ("evidence", {}, lambda o: replace(o, kem_key=bytes(32))),
        ("evidence", {}, other_key),
        ("evidence", {}, lambda o: replace(o, report=o.report[:0x50] + bytes(64) + o.report[0x90:])),
        ("unsigned_opening", {}, lambda o: replace(o, start_model=bytes(32))),
        ("unsigned_opening", {}, lambda o: replace(o, attempt=7)),
        ("unsigned_opening", {}, lambda o: replace(o, previous=b"p" * 32)),
        ("rollback", {"head": Head(1, b"r" * 32)}, lambda o: o),
        ("fork", {"head": Head(0, b"r" * 32)}, lambda o: o),
        ("wrong_model", {"received": bytes(32)}, lambda o: o),
    ],
)
def test_a_client_refuses_by_name(house: Any, name: str, changes: dict[str, Any], change: Callable[[Opening], Opening]):
    with pytest.raises(Refused) as caught:
        house.check(change(house.open()), **changes)
    assert caught.value.name == name


def test_another_clients_place_in_the_tree_is_not_its_own(house: Any):
    opening = house.open()
    with pytest.raises(Refused, match="nonce_missing"):
        house.check(opening, 0, path=house.paths[1])


def test_a_wrong_measurement_is_refused(build_house: Any):
    house = build_house(measurement=b"x" * 48)
    opening = house.open()
    with pytest.raises(Refused, match="wrong_measurement: measurement: 7878"):
        house.check(opening)


def test_an_expired_certificate_is_refused(build_house: Any):
    house = build_house(made=datetime.now(UTC) - timedelta(days=40))
    opening = house.open()
    with pytest.raises(Refused, match=r"evidence: chain_validity: .*not at"):
        house.check(opening)


def test_evidence_of_another_launch_is_refused(house: Any, build_house: Any):
    """HOST_DATA is the manifest's digest: the same code, launched for another run, isn't this run's."""
    other = build_house()
    house.firmware.launched = other.firmware.launched
    opening = house.open()
    with pytest.raises(Refused, match="evidence: host_data"):
        house.check(opening)


def test_relayed_evidence_is_refused(house: Any, build_house: Any):
    """Evidence of an honest aggregator, shown by one that hasn't its keys."""
    honest = house.open()
    mine = Ed25519PrivateKey.generate()
    forged = replace(honest, kem_key=public_kem(), signing_key=mine.public_key().public_bytes_raw()).signed(mine)
    with pytest.raises(Refused, match="evidence: report_data"):
        house.check(forged)


def test_software_evidence_needs_a_manifest_that_says_software(build_house: Any):
    house = build_house({"platform": "sev_snp"})
    opening = house.open()
    with pytest.raises(Refused, match="evidence: software_tee"):
        house.check(opening)


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


def test_who_is_not_authenticated_is_not_named(house: Any):
    """A message in another client's name neither counts as that client's nor hides its silence."""
    opening = house.open()
    answer = house.close(swapped(house, opening), house.message(opening, 0), house.message(opening, 2))
    assert verdicts(answer) == [(-1, "unsigned"), (0, "accepted"), (2, "accepted"), (1, "silent")]


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
    stored = {
        "state": answer["state"],
        "receipt": answer["receipt"],
        "report": opening.report,
        "certificates": list(house.certificates),
        "roots": [house.firmware.chip.certificates[2]],
    }
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


def test_who_was_refused_is_not_lost_with_the_round(house: Any):
    opening = house.open()
    with pytest.raises(Unreleased, match="least_cohort") as caught:
        house.close(swapped(house, opening), house.message(opening, 0))
    assert [(e["client"], e["verdict"]) for e in caught.value.entries] == [(-1, "unsigned"), (0, "accepted")]
