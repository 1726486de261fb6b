"""Every message that an aggregator refuses, by name. Nothing refused is counted, nothing counted is lost."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from privbench.defenses.tee.protocol import sealing
from privbench.defenses.tee.protocol.aggregator import Unreleased
from privbench.defenses.tee.protocol.manifest import Refused
from privbench.defenses.tee.protocol.opening import Opening
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


def test_who_is_not_authenticated_is_not_named(house: Any):
    """A message in another client's name neither counts as that client's nor hides its silence."""
    opening = house.open()
    answer = house.close(swapped(house, opening), house.message(opening, 0), house.message(opening, 2))
    assert verdicts(answer) == [(-1, "unsigned"), (0, "accepted"), (2, "accepted"), (1, "silent")]


def test_who_was_refused_is_not_lost_with_the_round(house: Any):
    opening = house.open()
    with pytest.raises(Unreleased, match="least_cohort") as caught:
        house.close(swapped(house, opening), house.message(opening, 0))
    assert [(e["client"], e["verdict"]) for e in caught.value.entries] == [(-1, "unsigned"), (0, "accepted")]
