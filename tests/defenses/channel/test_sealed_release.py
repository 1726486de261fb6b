"""A sealed release and its keys, with an aggregator in this process: what opens for whom."""

from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from privbench.benchmarks.build import ConfigError
from privbench.defenses.channel import Attested
from privbench.defenses.tee.protocol import downlink, sealing
from privbench.defenses.tee.protocol.manifest import Manifest, Refused


def recipients() -> tuple[list[X25519PrivateKey], tuple[str, ...]]:
    keys = [X25519PrivateKey.generate() for _ in range(4)]
    return keys, tuple(k.public_key().public_bytes_raw().hex() for k in keys)


@pytest.fixture
def released(build_house: Callable[..., Any]) -> Any:
    """A house, its recipients' keys, and what its first round released."""
    keys, public = recipients()
    house = build_house(changes={"recipients": public})
    opening = house.open()
    return house, keys, house.close(*(house.message(opening, c) for c in range(3)))


def resumed(released: Any, **changes: Any) -> Any:
    """A new aggregator that has the release's state, sealed."""
    house, _, answer = released
    certificates = list(house.certificates)
    house.aggregator = house.new()
    stored = {n: answer[n] for n in ("state", "receipt")} | {"report": house.report, "certificates": certificates}
    house.aggregator.resume({**stored, "roots": [certificates[-1]], **changes})
    return house


@pytest.fixture
def locked(released: Any) -> Any:
    house, keys, answer = released
    opened_round = house.aggregator
    assert not opened_round.locked
    return resumed((house, keys, answer)), keys, answer


def ask(house: Any, client: int = 1) -> Any:
    answer = house.aggregator.ask_key(client, house.nonces[client])
    house.paths, house.certificates = {client: answer["paths"][str(client)]}, tuple(answer["certificates"])
    return house.opened(answer)


def test_the_key_opens_the_state_and_nothing_else_does(locked: Any):
    house, keys, answer = locked
    key = downlink.open_state_key(answer["state_keys"][1], keys[1], house.manifest.digest, 1)
    model = downlink.open_key(answer["keys"][1], keys[1], house.manifest.digest, 1)
    assert house.aggregator.locked
    with pytest.raises(Refused, match="out_of_order"):
        house.open(2)
    opening = ask(house)
    assert (opening.round, opening.attempt) == (2, 0)
    for wrong in (bytes(32), model):
        opening = ask(house)
        sealed = sealing.enclose(wrong, house.place(opening, 1), opening.kem_key)
        with pytest.raises(Refused, match="unopenable"):
            house.aggregator.unlock(sealing.sign(sealed, house.place(opening, 1), house.keys[1]))
    with pytest.raises(Refused, match="out_of_order"):
        house.aggregator.unlock(b"")
    # Only the client that was asked: its nonce is in the evidence, another's isn't.
    opening = ask(house)
    place = house.place(opening, 2)
    with pytest.raises(Refused, match="not_invited"):
        house.aggregator.unlock(sealing.sign(sealing.enclose(key, place, opening.kem_key), place, house.keys[2]))
    with pytest.raises(Refused, match="unknown_client: client 3 of a roster of 3"):
        house.aggregator.ask_key(3, house.nonces[0])
    opening = ask(house)
    right = sealing.enclose(key, house.place(opening, 1), opening.kem_key)
    house.aggregator.unlock(sealing.sign(right, house.place(opening, 1), house.keys[1]))
    assert not house.aggregator.locked
    assert house.open(2).round == 2
    with pytest.raises(Refused, match="out_of_order"):
        house.aggregator.ask_key(1, house.nonces[1])


def test_a_release_opens_for_its_recipients_in_its_round_alone(released: Any):
    house, keys, answer = released
    digest = house.manifest.digest
    opened = [downlink.open_key(s, k, digest, 1) for s, k in zip(answer["keys"], keys, strict=True)]
    assert len(set(opened)) == 1
    for sealed, private, manifest, number in (
        (answer["keys"][0], keys[1], digest, 1),
        (answer["keys"][0], keys[0], digest, 2),
        (answer["keys"][0], keys[0], bytes(32), 1),
        (answer["keys"][0][:-1], keys[0], digest, 1),
        (b"", keys[0], digest, 1),
    ):
        with pytest.raises(Refused, match="unopenable"):
            downlink.open_key(sealed, private, manifest, number)
    for sealed, number in ((answer["model"][:-1], 1), (answer["state"], 1), (answer["model"], 2), (b"", 1)):
        with pytest.raises(Refused, match="unopenable"):
            downlink.open_model(sealed, opened[0], digest, number)
    own = [downlink.open_state_key(s, k, digest, 1) for s, k in zip(answer["state_keys"], keys, strict=False)]
    assert len(own) == 3, "who measures models and trains none gets no key of the state"
    assert len(set(own)) == 1
    assert set(own).isdisjoint(opened)
    assert downlink.open_state(answer["state"], own[0], digest, 1)
    for sealed, key in ((answer["model"], own[0]), (answer["state"], opened[0])):
        with pytest.raises(Refused, match="unopenable"):
            downlink.open_state(sealed, key, digest, 1)
    for sealed, private in ((answer["state_keys"][0], keys[3]), (answer["keys"][0], keys[0])):
        with pytest.raises(Refused, match="unopenable: the key of round 1's state"):
            downlink.open_state_key(sealed, private, digest, 1)


def test_recipients_are_enrolled_like_clients(build_house: Callable[..., Any]):
    _, public = recipients()
    house = build_house(changes={"recipients": public})
    added = {**house.manifest.__dict__, "recipients": (*public, recipients()[1][0])}
    with pytest.raises(Refused, match="unsigned_roster"):
        Manifest(**added).check_enrolment()
    with pytest.raises(Refused, match="unsigned_roster: 1 recipients' keys for 3 clients"):
        Manifest(**{**added, "recipients": public[:1]}).check_enrolment()


def test_a_manifest_without_recipients_is_spelled_as_before(build_house: Callable[..., Any]):
    assert b"recipients" not in build_house().manifest.canonical()


@pytest.mark.parametrize(("field", "who"), [("recipients", "recipient"), ("auditors", "auditor")])
def test_a_key_that_nothing_can_be_sealed_to_is_refused_before_anybody_trains(
    build_house: Callable[..., Any], field: str, who: str
):
    """A point of low order, such as zero, would be found when the round closes, and stop every release."""
    _, public = recipients()
    with pytest.raises(Refused, match=f"malformed_manifest: {who} 3's key is no X25519 key that can be sealed to"):
        build_house(changes={field: (*public[:3], "00" * 32)})
    with pytest.raises(ConfigError, match="auditors=0000"):
        Attested(auditors=(public[0], "00" * 32))


def test_an_opening_serves_one_purpose(locked: Any):
    """An update isn't sealed to what asks for a key, nor a key given to what opens a round."""
    house, keys, answer = locked
    opening = ask(house)
    key = downlink.open_key(answer["keys"][1], keys[1], house.manifest.digest, 1)
    received = downlink.digest(sealing.floats(house.model), downlink.salt(key))
    with pytest.raises(Refused, match="wrong_purpose: the opening asks for a key, its host for an update"):
        house.check(opening, 1, received=received)
    with pytest.raises(Refused, match="wrong_model"):
        house.check(opening, 1, received=received, for_key=True)
    house.aggregator = house.new()
    opening = house.open()
    with pytest.raises(Refused, match="wrong_purpose: the opening asks for an update, its host for a key"):
        house.check(opening, 1, for_key=True)
