"""What a client refuses of an aggregator, by name, before it trains."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from privbench.defenses.tee.protocol.manifest import Refused
from privbench.defenses.tee.protocol.opening import Head, Opening


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
    kem = X25519PrivateKey.generate().public_key().public_bytes_raw()
    forged = replace(honest, kem_key=kem, signing_key=mine.public_key().public_bytes_raw()).signed(mine)
    with pytest.raises(Refused, match="evidence: report_data"):
        house.check(forged)


def test_software_evidence_needs_a_manifest_that_says_software(build_house: Any):
    house = build_house({"platform": "sev_snp"})
    opening = house.open()
    with pytest.raises(Refused, match="evidence: software_tee"):
        house.check(opening)
